"""Commands for clusters: submitting jobs, checking nodes."""

import os
from pathlib import Path
from typing import Annotated

import typer

from waver.cli.options import Before, Config, Set, Stage, Workers, app, command, stdout
from waver.config import parse_overrides


@command
def submit(
    config: Annotated[
        str,
        typer.Argument(
            help="What the stage is given: an experiment; for tune a sweep; for evaluate and robustness a run.",
            show_default=False,
        ),
    ],
    stage: Annotated[Stage, typer.Argument(help="What the job does.")] = "train",
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="More for the stage, such as -- --split test.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Dashboard of the cluster, http://HEAD:8265.", show_default="RAY_API_SERVER_ADDRESS"),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show what the job prints, and end as it ends.")] = True,
    workers: Workers = None,
    overrides: Set = [],  # noqa: B006
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder that is uploaded.", show_default="the git clone, else the current folder"),
    ] = None,
    exclude: Annotated[
        list[str], typer.Option(metavar="PATTERN", help="Not uploaded, as in .gitignore; again for more.")
    ] = [],  # noqa: B006
    env: Annotated[
        list[str], typer.Option(metavar="NAME=VALUE", help="Environment variable of the job; again for more.")
    ] = [],  # noqa: B006
) -> None:
    """Run a stage on a cluster, as a job that goes on without this machine; submit again, it continues."""
    from waver.on_ray.jobs import StageCommand, dashboard_address, default_working_dir, plan_submission
    from waver.on_ray.jobs.client import follow_job, send_job

    given = [config, *(arguments or [])]
    given += [] if workers is None else ["--workers", str(workers)]
    given += [part for override in overrides for part in ("--set", override)]
    # The stage's own command reads them here, so that a mistake costs no job.
    parsed = typer.main.get_command(app).commands[stage].make_context(f"waver {stage}", list(given)).params
    asked = {"resources.workers": parsed["workers"]} if parsed.get("workers") else {}
    cluster, here = dashboard_address(address, os.environ), Path.cwd()
    submission = plan_submission(
        StageCommand(stage, given, parsed, asked | parse_overrides(parsed["overrides"]), here),
        working_dir=working_dir or default_working_dir(here),
        address=cluster,
        excludes=exclude,
        variables=env,
        environ=os.environ,
    )
    job = send_job(submission, cluster)
    if not follow:
        print(job)
        return
    raise typer.Exit(follow_job(job, cluster, write=lambda text: print(text, end="", flush=True)))


@command
def doctor(
    config: Config,
    before: Annotated[Before, typer.Option(help="The stage that is to start.")] = "train",
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster whose nodes are tried as well.", show_default="RAY_ADDRESS, else none"),
    ] = None,
    workers: Workers = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the report.", show_default="below the storage")
    ] = None,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Look for all that could go wrong before anything runs; 0 only if the stage can start."""
    from waver.doctor.findings import can_start, findings_text
    from waver.on_ray.doctor.examine import run_doctor

    asked = {} if workers is None else {"resources.workers": workers}
    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    findings = run_doctor(
        config,
        lambda: asked | parse_overrides(overrides),
        before=before,
        output=output,
        show=lambda found: stdout.print(findings_text(found), end="", soft_wrap=True),
    )
    raise typer.Exit(0 if can_start(findings) else 1)
