"""What was found on a GPU, as a page of Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from gpu_run import NETWORKS

CAMERA_PER_S = 34.8
TARGET_SHARE, TARGET_PER_S = 0.40, 10 * CAMERA_PER_S
ENGINE_COLUMNS = (
    "", "how", "frames/s", "spread", "of the ceiling", "p max", "p mean", "mask", "IoU",
    "noise: mask", "opened in, s", "GPU memory, MiB",
)  # fmt: skip
FILES_COLUMNS = (
    "", "frames", "frames/s under way", "whole run", "in memory, frames to masks", "ms: read",
    "judge", "segment", "record",
)  # fmt: skip
Results = dict[str, dict[str, Any]]
DRY = (
    "**DRY RUN: tiny frames and a processor that plays the GPU. It shows that the script runs; "
    "no figure below says anything of any speed.**"
)


def page(results: Results, date: str, command: str, *, tiny: bool) -> str:
    """Return the page; parts that failed or are missing are named at its end."""
    lines = [f"## {date}: {_named(results)}", "", *([DRY, ""] if tiny else [])]
    lines += [f"`{command}`", "", *_facts(results), "", *_ceiling(results)]
    for network in NETWORKS:
        lines += _network(results, network)
    lines += _tensorrt(results)
    lines += _ended(results)
    return "\n".join(lines) + "\n"


def _named(results: Results) -> str:
    return str(results.get("facts", {}).get("gpu", {}).get("name", "no GPU"))


def _facts(results: Results) -> list[str]:
    facts = results.get("facts", {})
    gpu = facts.get("gpu", {})
    lines = [f"- GPU: {', '.join(f'{k} {v}' for k, v in gpu.items() if v != '')}"]
    lines += [f"- nvidia-smi ({what}): {said}" for what, said in (
        ("at the start", facts.get("nvidia_smi")),
        ("after the products", results.get("ceiling", {}).get("nvidia_smi_after")),
    ) if said]  # fmt: skip
    versions = ", ".join(f"{k} {v}" for k, v in facts.get("libraries", {}).items())
    lines.append(f"- libraries: {versions}")
    return lines + [f"- {line}" for line in facts.get("machine", [])]


def _ceiling(results: Results) -> list[str]:
    found = results.get("ceiling", {})
    if "half_tflops" not in found:
        return ["The ceiling was not measured: shares are missing.", ""]
    rates = found["medians"]
    products = ", ".join(f"{side}: {_f(rate)}" for side, rate in rates.items() if side != "copy")
    said = (
        f"Ceiling: **{_f(found['half_tflops'])} TFLOP/s** in half precision, the best median of "
        f"{found['rounds']} rounds over the sides of square products ({products}); memory "
        f"{_f(found['memory_tb_s'])} TB/s, read and written."
    )
    return [said, ""]


def _network(results: Results, network: str) -> list[str]:
    costs = (results.get("material", {}).get("networks") or {}).get(network)
    if not costs:
        return [f"### {network}: nothing, for there was no network", ""]
    title = (
        f"### {network}: {costs['parameters'] / 1e6:.2f} M parameters, "
        f"{costs['gflop']:.1f} GFLOP a frame of {costs['input'][2]} x {costs['input'][3]}"
    )
    return [title, "", *_engines(results, network, costs["gflop"]), *_files(results, network)]


def _engines(results: Results, network: str, gflop: float) -> list[str]:
    found = results.get(f"speed-{network}", {})
    ceiling = results.get("ceiling", {}).get("half_tflops")
    said = (
        f"Engine only, input and output on the GPU, medians of {found.get('rounds', 0)} rounds in "
        f"turns; target: >= {TARGET_SHARE:.0%} of the ceiling"
    )
    if ceiling:
        said += f", {_f(TARGET_SHARE * ceiling * 1e3 / gflop)} frames/s"
    lines = [said, "", *_table_head(ENGINE_COLUMNS)]
    for label, each in found.get("contenders", {}).items():
        rate = each.get("median", each.get("first"))
        rates = each.get("rates") or ([rate] if rate else [])
        share = f"{rate * gflop / 1e3 / ceiling:.1%}" if rate and ceiling else ""
        spread = f"{_f(min(rates))} to {_f(max(rates))}" if rates else ""
        real, noise = ((each.get("parity") or {}).get(kind, {}) for kind in ("real", "noise"))
        cells = [
            label,
            each["how"],
            _f(rate),
            spread,
            share,
            _f(real.get("max_probability_difference"), 2),
            _f(real.get("mean_probability_difference"), 2),
            _percent(real.get("mask_agreement")),
            _percent(real.get("iou")),
            _percent(noise.get("mask_agreement")),
            _f(each.get("open_s")),
            str(each.get("gpu_mib", "")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _files(results: Results, network: str) -> list[str]:
    found = results.get(f"files-{network}", {}).get("runs", {})
    rounds = [max(1, len(each["rounds"]) - 1) for each in found.values() if each["rounds"]]
    said = (
        "End to end, files in memory to masks and QC logs, judged and recorded, medians of "
        f"{round(statistics.median(rounds)) if rounds else 0} rounds in turns; target: >= "
        f"{TARGET_PER_S:.0f} frames/s, ten times the camera's {CAMERA_PER_S}"
    )
    lines = [said, "", *_table_head(FILES_COLUMNS)]
    for label, each in found.items():
        figures = ("under_way", "whole", "in_memory", "read", "judge", "segment", "record")
        cells = [label, str(each.get("frames", "")), *(_f(each.get(key)) for key in figures)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _tensorrt(results: Results) -> list[str]:
    lines = ["### TensorRT's answers", ""]
    tried = {name: found for name, found in results.items() if name.startswith("tensorrt-")}
    if not tried:
        lines.append("No TensorRT is installed.")
    for name, found in tried.items():
        _, flavour, network = name.split("-")
        refused = [f"{what}: {said}" for what, said in found.get("failed", {}).items()]
        lines.append(
            f"- {flavour} {found.get('version', '')}, {network}: segbatch's guard: "
            f"{found.get('guard', 'gave no answer')}. Past it: "
            f"{', '.join(found.get('steps', [])) or 'nothing'} succeeded; "
            f"{'; '.join(refused) or 'nothing was refused'}; the process: {found['outcome']}."
        )
    return [*lines, ""]


def _ended(results: Results) -> list[str]:
    lines = ["### How each part ended", ""]
    for name, found in results.items():
        lines.append(f"- {name}: {found['outcome']}, {found['took_s']} s")
        if not name.startswith("tensorrt-"):
            lines += [f"  - {what}: {said}" for what, said in found.get("failed", {}).items()]
    return lines


def _table_head(columns: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(columns)} |".replace("|  |", "| |"), "|---" * len(columns) + "|"]


def _f(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}" if value < 1000 else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.4%}"
