"""`ssl-vit launch`: the same run as a job. Nothing slow is imported at the top."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run pre-training as a SLURM job, or as a job on this machine.",
)


@app.callback()
def root() -> None:
    """Run pre-training as a SLURM job, or as a job on this machine."""


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(help="A recipe or a config.yaml.")],
    run: Annotated[Path, typer.Option("--run", help="Run folder, on a shared file system.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as path=value.")] = None,
    cluster: Annotated[
        str, typer.Option("--cluster", help="A cluster profile (YAML), or the word local.")
    ] = "local",
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="Shrink the recipe.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job has ended.")] = False,
) -> None:
    """Queue a run; it saves when the scheduler asks, and resumes by itself."""
    from ssl_vit_launch.cluster import read_cluster
    from ssl_vit_launch.submit import submit as submit_run

    job = submit_run(recipe, run, overrides or [], smoke, read_cluster(cluster), nodes)
    typer.echo(f"job {job.job_id}: {run}")
    typer.echo(f"logs: {job.paths.folder}")
    if wait:
        job.wait()
        if job.exception() is not None:
            typer.echo(job.stderr() or "the job failed without a word", err=True)
            raise SystemExit(1)
        typer.echo("done")
