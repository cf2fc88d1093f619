"""`ssl-vit launch`: runs as jobs. Slow imports are inside the commands."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ssl_vit_launch.submit import Request

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run pre-training as SLURM jobs, or as a job on this machine.",
)

RunArgument = Annotated[Path, typer.Argument(help="Run folder of a submitted run.")]
ClusterOption = Annotated[
    str, typer.Option("--cluster", help="Cluster profile (YAML file), or local.")
]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, max=2**16, help="Number of nodes.")]
MinNodesOption = Annotated[
    int | None,
    typer.Option(
        "--min-nodes",
        min=1,
        max=2**16,
        help="Minimum number of nodes to run on (default: --nodes).",
    ),
]
SmokeOption = Annotated[bool, typer.Option("--smoke", help="Shrink the recipe.")]
ProfileOption = Annotated[
    bool, typer.Option("--profile", help="Profile a few steps into RUN/profile.")
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print the plan and the batch script without queueing anything."
    ),
]
SnapshotOption = Annotated[
    bool,
    typer.Option("--from-snapshot", help="Run a copy of the code as of now."),
]
ThenOption = Annotated[
    list[str] | None,
    typer.Option("--then", help="Evaluation of the finished run: 'eval knn --train S --test S'."),
]
AtExportsOption = Annotated[
    bool,
    typer.Option("--at-exports", help="With --then: also evaluate every export when it appears."),
]


@app.callback()
def root() -> None:
    """Run pre-training as SLURM jobs, or as a job on this machine."""


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(help="Recipe name or config.yaml.")],
    run: Annotated[Path, typer.Option("--run", help="Run folder, on a shared file system.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as path=value.")] = None,
    cluster: ClusterOption = "local",
    nodes: NodesOption = 1,
    min_nodes: MinNodesOption = None,
    smoke: SmokeOption = False,
    profile: ProfileOption = False,
    from_snapshot: SnapshotOption = False,
    then: ThenOption = None,
    at_exports: AtExportsOption = False,
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            help="Time budget of the run; the number of steps follows from the rate.",
        ),
    ] = None,
) -> None:
    """Queue a run as a job that saves when preempted and resumes automatically."""
    from ssl_vit.run.minutes import with_minutes
    from ssl_vit_launch.cluster import read_cluster
    from ssl_vit_launch.submit import Request

    request = Request(
        recipe=recipe,
        run=run.absolute(),
        overrides=tuple(with_minutes(overrides or [], minutes)),
        is_smoke=smoke,
        cluster=read_cluster(cluster),
        nodes=nodes,
        min_nodes=min_nodes or nodes,
        profile=profile,
        from_snapshot=from_snapshot,
        then=tuple(then or ()),
        at_exports=at_exports,
    )
    _submit(request, dry_run, wait)


@app.command()
def resubmit(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change, as path=value.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="Another cluster profile, or local (default: as before)."),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", min=1, max=2**16, help="Number of nodes (default: as before)."),
    ] = None,
    min_nodes: MinNodesOption = None,
    from_snapshot: Annotated[
        bool,
        typer.Option(
            "--from-snapshot", help="Run the copy of the code taken at the last submission."
        ),
    ] = False,
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
) -> None:
    """Queue a run that has ended again; it continues from its newest checkpoint."""
    from dataclasses import replace

    from ssl_vit_launch.cluster import read_cluster
    from ssl_vit_launch.submit import again

    request = again(run.absolute(), nodes, min_nodes, from_snapshot)
    if cluster is not None:
        request = replace(request, cluster=read_cluster(cluster))
    _submit(replace(request, overrides=tuple(overrides or ())), dry_run, wait)


def _submit(request: "Request", dry_run: bool, wait: bool) -> None:
    from ssl_vit_launch import submit

    if dry_run:
        _show([request], request.run)
        return
    prepared = submit.check(request)
    typer.echo("\n".join(submit.describe_request(prepared, request)), err=True)
    (submission,) = submit.queue([prepared], request, request.run)
    typer.echo(f"job {submission.job}: {submission.run}")
    typer.echo(f"status: ssl-vit launch status {shlex.quote(submission.run)}")
    typer.echo(f"logs:   ssl-vit launch logs {shlex.quote(submission.run)} --follow")
    if wait:
        from ssl_vit_launch.status import describe, read_status
        from ssl_vit_launch.watch import wait_for_end

        complete = wait_for_end([submission])
        typer.echo("\n".join(describe(read_status(request.run))))
        raise typer.Exit(0 if complete else 1)


def _show(requests: "list[Request]", home: Path) -> None:
    from ssl_vit_launch.submit import dry_run

    lines, text = dry_run(requests, home)
    typer.echo("\n".join(lines), err=True)
    if text:
        typer.echo(text)


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(help="Recipe name or config.yaml.")],
    run: Annotated[Path, typer.Option("--run", help="Folder for the run folders.")],
    overrides: Annotated[list[str], typer.Argument(help="Settings as path=value,value,…")],
    cluster: ClusterOption = "local",
    nodes: NodesOption = 1,
    smoke: SmokeOption = False,
    from_snapshot: SnapshotOption = False,
    then: ThenOption = None,
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
) -> None:
    """Queue one run per combination of settings, as a job array."""
    from ssl_vit_launch.cluster import read_cluster
    from ssl_vit_launch.listing import print_table
    from ssl_vit_launch.submit import Request
    from ssl_vit_launch.sweep import requests_of, submit_sweep
    from ssl_vit_launch.watch import wait_for_end

    request = Request(
        recipe=recipe,
        run=run.absolute(),
        overrides=tuple(overrides),
        is_smoke=smoke,
        cluster=read_cluster(cluster),
        nodes=nodes,
        min_nodes=nodes,
        from_snapshot=from_snapshot,
        then=tuple(then or ()),
    )
    if dry_run:
        _show(requests_of(request), request.run)
        return
    submissions = submit_sweep(request)
    for each in submissions:
        typer.echo(f"job {each.job}: {each.run}")
    if not wait:
        typer.echo(f"table: ssl-vit launch list {shlex.quote(str(run))}")
        return
    complete = wait_for_end(submissions)
    print_table(request.run)
    raise typer.Exit(0 if complete else 1)


@app.command()
def status(run: RunArgument) -> None:
    """Show a run's progress, speed, restarts and last error."""
    from ssl_vit_launch.status import describe, read_status

    typer.echo("\n".join(describe(read_status(run.absolute()))))


@app.command()
def logs(
    run: RunArgument,
    rank: Annotated[int, typer.Option("--rank", help="Rank of the process.")] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the job is over.")
    ] = False,
) -> None:
    """Show the log of one process of a run, across all its starts."""
    from ssl_vit_launch.watch import show_log

    show_log(run.absolute(), rank, follow)


@app.command()
def cancel(
    run: Annotated[Path, typer.Argument(help="Run folder, or a folder of runs (a sweep).")],
) -> None:
    """Cancel a run's job; it saves if time allows, and can be resubmitted."""
    from ssl_vit_launch.schedulers import cancel_all

    for submission in cancel_all(run.absolute()):
        typer.echo(f"job {submission.job} is being canceled: {submission.run}")


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Folder that contains run folders.")],
) -> None:
    """List all runs in a folder."""
    from ssl_vit_launch.listing import print_table

    print_table(folder.absolute())
