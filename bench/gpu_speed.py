"""Engine only: every contender on the same frames, in turns, and how alike its masks are."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_engines
import gpu_nets
import msgspec
import numpy as np
import torch
from gpu_material import NOISE, model_of
from gpu_run import Notes, Rounds
from numpy.typing import NDArray

from segbatch.infer.engine.made.likeness import Answer, likeness
from segbatch.infer.engine.manifest import Manifest
from segbatch.learn.export.frames import Picture
from segbatch.learn.export.gate import answer, decided_from

TURN_S = 0.4
MOST_ROUNDS = 9
MONAI_ROI_PX, MONAI_BATCH = 512, 4
Image = NDArray[np.float32]


@dataclass
class Contender:
    """What is timed: ``step`` asks for ``frames`` frames, ``wait`` waits for all asked for."""

    label: str
    how: str
    frames: int
    step: Callable[[], object]
    wait: Callable[[], object]
    answer: Callable[[Image], Answer]
    close: Callable[[], object] = lambda: None
    rates: list[float] = field(default_factory=list)


def measure(notes: Notes, work: Path, network: str, seconds: float, *, tiny: bool) -> None:
    """Note parity and rates of every contender that runs here."""
    manifest = model_of(network, work).manifest
    frame_px = tuple(msgspec.json.decode((work / "material.json").read_bytes())["frame_px"])
    until = time.monotonic() + seconds
    images, logits = gpu_engines.reference(work, network)
    running: list[Contender] = []
    for label, opening in openings(network, work, frame_px, images, tiny=tiny).items():
        before_mib, began = used_mib(tiny=tiny), time.monotonic()
        found = notes.attempt(label, opening)
        opened = {
            "open_s": round(time.monotonic() - began, 2),
            "gpu_mib": used_mib(tiny=tiny) - before_mib,
        }
        if found is None:
            _give_back(tiny=tiny)
            continue
        parity = notes.attempt(
            f"parity of {label}",
            lambda found=found: compare(found, images, logits, manifest, frame_px),
        )
        first = notes.attempt(f"timing {label}", lambda found=found: warmed(found))
        notes.put(
            contenders={
                **notes.found.get("contenders", {}),
                label: {"how": found.how, "frames": found.frames, "parity": parity, "first": first}
                | opened,
            }
        )
        if first is None:
            found.close()
            _give_back(tiny=tiny)
        else:
            running.append(found)
    in_turns(notes, running, until - time.monotonic(), tiny=tiny)
    for each in running:
        notes.attempt(f"closing {each.label}", each.close)


def used_mib(*, tiny: bool) -> int:
    """Return how much of the GPU's memory is taken, by whomever, MiB."""
    if tiny:
        return 0
    free, whole = torch.cuda.mem_get_info()
    return (whole - free) >> 20


def _give_back(*, tiny: bool) -> None:
    """Give the GPU's memory back that one who failed, for lack of it perhaps, had taken."""
    gc.collect()
    if not tiny:
        torch.cuda.empty_cache()


def openings(
    network: str, work: Path, frame_px: Any, images: Any, *, tiny: bool
) -> dict[str, Callable[[], Contender]]:
    """Return what opens each contender, those that take long to open last."""
    model = model_of(network, work)

    def ours(name: str, batch: int = 1) -> Callable[[], Contender]:
        def opening() -> Contender:
            opened = gpu_engines.open_engine(name, network, work, frame_px, batch, tiny=tiny)
            with opened.request(opened.input_shape, 1) as slot:  # type: ignore[arg-type]
                slot.input[...] = images[0]
                slot.decide()
            return Contender(
                _label(name, batch),
                gpu_engines.HOW[name],
                batch,
                opened.alone,
                opened.wait,
                lambda image: answer(opened, Picture.of(image), model.manifest),  # type: ignore[arg-type]
                opened.close,
            )

        return opening

    def theirs(label: str, how: str, make: Callable[[], Any], dtype: Any) -> Any:
        return lambda: _peer(label, how, make(), dtype, images, model.manifest, tiny=tiny)

    def monai(label: str, dtype: Any) -> Any:
        return lambda: _monai(label, _net(model, dtype, tiny=tiny), dtype, images, frame_px, model,
                              tiny=tiny)  # fmt: skip

    def compiled() -> Any:
        net = _net(model, torch.half, tiny=tiny)
        return torch.compile(net, dynamic=False, backend="eager" if tiny else "inductor")

    made = [
        flavour
        for flavour in gpu_engines.FLAVOURS
        if _succeeded(work / f"tensorrt-{flavour}-{network}.json")
    ]
    return {
        "torch, eager, fp32": theirs(
            "torch, eager, fp32", "as trained; TF32 in convolutions, as is torch's default",
            lambda: _net(model, torch.float32, tiny=tiny), torch.float32),
        "torch, eager, half": theirs(
            "torch, eager, half", "as trained, channels-last",
            lambda: _net(model, torch.half, tiny=tiny), torch.half),
        "MONAI, fp32": monai("MONAI, fp32", torch.float32),
        "MONAI, half": monai("MONAI, half", torch.half),
        **{_label(name, 1): ours(name) for name in made},
        gpu_engines.CUDNN: ours(gpu_engines.CUDNN),
        gpu_engines.ONNXRUNTIME: ours(gpu_engines.ONNXRUNTIME),
        gpu_engines.COMPILED: ours(gpu_engines.COMPILED),
        "torch, compiled, half": theirs(
            "torch, compiled, half", "as trained, channels-last, torch.compile", compiled,
            torch.half),
        _label(gpu_engines.CUDNN, 4): ours(gpu_engines.CUDNN, 4),
        _label(gpu_engines.COMPILED, 4): ours(gpu_engines.COMPILED, 4),
    }  # fmt: skip


def _label(name: str, batch: int) -> str:
    return name if batch == 1 else f"{name}, batch {batch}"


def _succeeded(file: Path) -> bool:
    return file.exists() and bool(msgspec.json.decode(file.read_bytes()).get("runs"))


def _net(model: Any, dtype: Any, *, tiny: bool) -> Any:
    torch.backends.cudnn.benchmark = True
    net = gpu_nets.as_trained(model).to("cpu" if tiny else "cuda", dtype)
    return net.to(memory_format=torch.channels_last) if dtype == torch.half else net


def _on(images: Any, dtype: Any, *, tiny: bool) -> list[torch.Tensor]:
    where = "cpu" if tiny else "cuda"
    return [torch.from_numpy(each[None]).to(where, dtype) for each in images[:-NOISE]]


def _peer(
    label: str, how: str, net: Any, dtype: Any, images: Any, manifest: Manifest, *, tiny: bool
) -> Contender:
    """Return a network of torch that is given whole frames, one after the other."""
    given = _on(images, dtype, tiny=tiny)
    turn = iter(range(1 << 62))

    @torch.no_grad()
    def step() -> None:
        net(given[next(turn) % len(given)])

    @torch.no_grad()
    def replied(image: Image) -> Answer:
        found = net(torch.from_numpy(image).to(given[0].device, dtype))
        return decided_from(found[0].float().cpu().numpy(), manifest)

    wait = (lambda: None) if tiny else torch.cuda.synchronize
    return Contender(label, how, 1, step, wait, replied)


def _monai(
    label: str, net: Any, dtype: Any, images: Any, frame_px: Any, model: Any, *, tiny: bool
) -> Contender:
    """Return MONAI's sliding window as its users run it, on frames that lie on the GPU."""
    from monai.inferers.utils import sliding_window_inference

    roi = 64 if tiny else MONAI_ROI_PX
    cut = images[:, :, : frame_px[0], : frame_px[1]]

    def window(image: torch.Tensor) -> Any:
        return sliding_window_inference(
            image[..., : frame_px[0], : frame_px[1]], (roi, roi), MONAI_BATCH, net,
            overlap=0.25, mode="gaussian",
        )  # fmt: skip

    how = f"eager, windows of {roi} px, overlap 0.25, Gaussian, sw_batch {MONAI_BATCH}"
    return _peer(label, how, window, dtype, np.ascontiguousarray(cut), model.manifest, tiny=tiny)


def compare(
    contender: Contender, images: Any, logits: Any, manifest: Manifest, frame_px: Any
) -> dict[str, Any]:
    """Return how alike the answers are on real frames, and on noise."""
    sets = {"real": slice(0, -NOISE), "noise": slice(-NOISE, None)}
    found = {}
    for name, which in sets.items():
        wanted = [_cut(decided_from(each, manifest), frame_px) for each in logits[which]]
        got = [_cut(contender.answer(each[None]), frame_px) for each in images[which]]
        found[name] = msgspec.to_builtins(likeness(name, wanted, got, noise=name == "noise"))
    return found


def _cut(given: Answer, frame_px: Any) -> Answer:
    """Return an answer without what was mirrored out of the frame."""
    y, x = frame_px
    probabilities = given.probabilities
    return Answer(given.mask[:y, :x], None if probabilities is None else probabilities[:, :y, :x])


def warmed(contender: Contender) -> float:
    """Return frames/s of a few steps, after some that are not counted."""
    taken(contender, 3)
    return 3 * contender.frames / taken(contender, 3)


def taken(contender: Contender, steps: int) -> float:
    """Return the seconds of some steps, from a GPU at rest to a GPU at rest."""
    contender.wait()
    start = time.perf_counter()
    for _ in range(steps):
        contender.step()
    contender.wait()
    return time.perf_counter() - start


def in_turns(notes: Notes, running: list[Contender], seconds: float, *, tiny: bool) -> None:
    """Time all contenders one after the other, round after round, starting with another each."""
    known = notes.found.get("contenders", {})
    turn_s = 0.01 if tiny else TURN_S
    rounds = Rounds(seconds, 1, 2 if tiny else MOST_ROUNDS)
    while rounds.another():
        for at in range(len(running)):
            each = running[(at + rounds.done) % len(running)]
            steps = max(2, round(turn_s * known[each.label]["first"] / each.frames))
            spent = notes.attempt(f"round of {each.label}", lambda e=each, s=steps: taken(e, s))
            if spent is not None:
                each.rates.append(steps * each.frames / spent)
                known[each.label]["rates"] = each.rates
                known[each.label]["median"] = statistics.median(each.rates)
        notes.put(contenders=known, rounds=rounds.done)
