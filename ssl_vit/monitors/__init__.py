"""What a run says of what it learns while it learns: collapse, spread, online probes."""
