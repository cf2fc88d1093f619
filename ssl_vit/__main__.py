"""`python -m ssl_vit`, the same as `ssl-vit`; this is what `torchrun -m ssl_vit` starts."""

from ssl_vit.cli import main

main()
