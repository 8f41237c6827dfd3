"""Commands for clusters: `waver doctor` and `waver submit`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waver.cli.options import Config, JobStage, Set, Workers, app, merge_overrides, stdout
from waver.doctor.findings import CheckedStage
from waver.tools.commands import config_arguments

if TYPE_CHECKING:  # importing Ray takes seconds
    from waver.on_ray.jobs import StageCommand


def submit(
    config: Annotated[
        str,
        typer.Argument(
            help="YAML file of the experiment; for tune, of the sweep; for evaluate and robustness, folder of a run; for "
            "evaluate also an experiment, zero-shot.",
            show_default=False,
        ),
    ],
    stage: Annotated[JobStage, typer.Argument(help="Stage that the job runs.")] = "train",
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ARGUMENTS]", help="Further arguments of the stage, such as -- --split test."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Dashboard of the cluster: http://HEAD:8265.", show_default="RAY_API_SERVER_ADDRESS"),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Print the output of the job and exit with its status.")] = True,
    workers: Workers = None,
    overrides: Set = [],  # noqa: B006
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to upload.", show_default="the git clone, else the current folder"),
    ] = None,
    exclude: Annotated[
        list[str], typer.Option(metavar="PATTERN", help="Files not to upload, as in .gitignore; repeatable.")
    ] = [],  # noqa: B006
    env: Annotated[
        list[str], typer.Option(metavar="NAME=VALUE", help="Environment variable of the job; repeatable.")
    ] = [],  # noqa: B006
) -> None:
    """Run a stage on a cluster as a job, which does not need this machine; submit it again to continue it."""
    from waver.on_ray.jobs import dashboard_address, default_working_dir, plan_submission
    from waver.on_ray.jobs.client import follow_job, send_job

    cluster, here = dashboard_address(address, os.environ), Path.cwd()
    given = [config, *(arguments or [])]
    given += [] if workers is None else ["--workers", str(workers)]
    given += [part for override in overrides for part in ("--set", override)]
    submission = plan_submission(
        _stage_command(stage, given, here),
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


def _stage_command(stage: str, arguments: list[str], folder: Path) -> "StageCommand":
    """Parses the arguments of `waver STAGE` as that command does, so that mistakes are reported before the upload."""
    from waver.on_ray.jobs import StageCommand

    parsed = typer.main.get_command(app).commands[stage].make_context(f"waver {stage}", list(arguments)).params
    overrides = merge_overrides(parsed["overrides"], parsed.get("workers"))
    return StageCommand(stage, arguments, parsed, overrides, folder)


def doctor(
    config: Config,
    before: Annotated[CheckedStage, typer.Option(help="Stage that is to start.")] = "train",
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster whose nodes are checked too.", show_default="RAY_ADDRESS, else none"),
    ] = None,
    workers: Workers = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the report.", show_default="STORAGE/doctor/NAME.json")
    ] = None,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Check data, machine and cluster for everything that would stop a stage; exit with 0 if the stage can start."""
    from waver.doctor.findings import can_start, findings_text
    from waver.on_ray.doctor.examine import run_doctor

    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    findings = run_doctor(
        config,
        lambda: merge_overrides(overrides, workers),
        before=before,
        output=output,
        show=lambda found: stdout.print(findings_text(found), end="", soft_wrap=True),
        arguments=config_arguments(config, overrides, workers),
    )
    raise typer.Exit(0 if can_start(findings) else 1)
