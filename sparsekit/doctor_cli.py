# SPDX-License-Identifier: Apache-2.0
"""``sparsekit doctor``: what is installed and what serves."""

from __future__ import annotations

from rich.table import Table

from sparsekit.console import OUT, Json, print_json


def doctor(as_json: Json = False) -> None:
    """What is installed, what serves each op, and what is missing."""
    from sparsekit.doctor import diagnose

    facts = diagnose()
    if as_json:
        print_json(facts)
        return
    table = Table("what", "value", title="sparsekit doctor")
    table.add_row("python", facts["python"])
    for name, version in facts["packages"].items():
        table.add_row(name, version or "[yellow]missing[/yellow]")
    table.add_row("threads", str(facts["threads"]))
    native = facts["native"]
    built = f"yes, CUDA code {'in' if native['cuda'] else 'not in'}, CPU: {', '.join(native['cpu_features'])}"
    table.add_row("sparsekit._C", built if native["built"] else "[yellow]not built[/yellow]")
    for gpu in facts["gpus"] or [{"name": "none", "capability": "-", "memory_gib": "-"}]:
        table.add_row("GPU", f"{gpu['name']} (capability {gpu['capability']}, {gpu['memory_gib']} GiB)")
    OUT.print(table)
    served = Table("op", "CPU tensors", "CUDA tensors", title="what serves each op")
    for name, by in facts["ops"].items():
        served.add_row(name, by["cpu"], by["cuda"])
    OUT.print(served)
    choice = Table("what", "value", title="which kernel serves on a GPU")
    for name, value in facts["dispatch"].items():
        choice.add_row(name, value)
    OUT.print(choice)
    for line in facts["advice"]:
        OUT.print(f"[yellow]advice:[/yellow] {line}")
