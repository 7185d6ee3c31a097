from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, say


def export(name: Annotated[str, typer.Argument(metavar="RELEASE|RUN")],
           output: Annotated[str, typer.Option("--output", metavar="DIR", help="A directory that is not there yet.")],
           format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="peft, merged, vllm, gguf or ollama.")],
           dtype: Annotated[str | None, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16. Default: as "
                                                     "trained, or what the runtime takes.")] = None,
           quant: Annotated[str | None, typer.Option(metavar="TYPE", help="For gguf and ollama: f16 (default), q8_0, bf16 or "
                                                     "f32.")] = None,
           base_path: Annotated[str | None, typer.Option("--base-path", metavar="NAME_OR_PATH", help="What the export calls "
                                                         "its base, where that is not the place it was found at.")] = None,
           unreleased: Annotated[bool, typer.Option("--unreleased", help="A run that was not released, too.")] = False,
           as_json: Json = False) -> None:
    """Write a release for another program, ask it there what was asked here, and keep it if the answers are the same.

    Exit code 3 when they are not: nothing is left.
    """
    from tunesmith import verbs

    made = verbs.export(name, format, output, dtype=dtype, quant=quant, base_path=base_path, unreleased=unreleased, say=say)
    emit(made, as_json, export_lines(made))
    raise typer.Exit(3 if made["verdict"] == "fail" else 0)


def export_lines(made: dict) -> list[str]:
    probe = made["probe"]
    lines = [f"{made['verdict']:>12}  {probe['message']}"]
    if made["verdict"] == "not_measured":
        lines.append("NOT MEASURED: nobody has seen this export answer. It is no proof of anything.")
    lines += [f"  {key}: {probe[key]}" for key in ("warning",) if probe.get(key)]
    if probe.get("fix") and made["verdict"] != "pass":
        lines.append(f"  do: {probe['fix']}")
    return [*lines, f"export {made['path']}  ({len(made['files'])} files)" if made["path"] else "nothing was exported"]
