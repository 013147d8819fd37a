"""The process that computes suggestions: reads what to do from its input, writes a line of JSON an image.

It ends when its input is closed, so it does not outlive the server, however that ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from segshift.data.images import load_resized
from segshift.data.tensors import as_float
from segshift.engine.inference import logits_at
from segshift.engine.model import Model, load_model
from segshift.errors import UserError, gist
from segshift.setup import devices

LEAST = 0.0001
"""Share of an image's pixels from which a predicted class counts as present. Measured: docs/annotate.md."""


def look(model: Model, file: Path) -> tuple[list[int], float]:
    """Classes that a model sees in an image, by their index, and the mean entropy of its pixels over log(K).

    Raises:
        UserError: the image cannot be read, or the network's output is not finite.
    """
    pixels, _ = load_resized(file, model.size)
    device = next(model.net.parameters()).device
    with torch.inference_mode():
        logits = logits_at([model.net], as_float(pixels)[None].to(device), (model.size[1], model.size[0]))[0]
        log_p = logits.log_softmax(dim=0)
        entropy = -(log_p.exp() * log_p).sum(dim=0).mean() / torch.tensor(float(len(log_p))).log()
        shares = logits.argmax(dim=0).flatten().bincount(minlength=len(logits)) / logits[0].numel()
    return [i for i, share in enumerate(shares.tolist()) if share >= LEAST], min(1.0, max(0.0, entropy.item()))


def say(**content: Any) -> None:
    """Tell the server something."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def _until_closed() -> None:
    """End the process with the server's end of the pipe."""
    # Not by sys.stdin: a thread that waits in it would disturb Python's own end.
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)


def main() -> None:
    """Load the model, say so, be told the images, and look at one after the other."""
    os.nice(10)
    # One core is left to the page.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    run, device = sys.argv[1:]
    try:
        model = load_model(Path(run), devices(device))
    except UserError as error:
        say(found=error.found, wanted=error.wanted, remedy=error.remedy)
        return
    say(model=model.config["sha256"], classes=list(model.classes.names))
    told = json.loads(sys.stdin.readline() or "null")
    if told is None:
        return
    threading.Thread(target=_until_closed, daemon=True).start()
    names: list[str | None] = told["names"]
    try:
        for name, file in told["files"]:
            try:
                seen, entropy = look(model, Path(file))
            except UserError as error:
                say(image=name, problem=error.found)
                continue
            say(image=name, tags=[names[i] for i in seen if names[i]], entropy=round(entropy, 6))
    except RuntimeError as error:  # torch's, when there is no memory
        say(failure=f"suggestions stopped: {gist(error)}")


if __name__ == "__main__":
    main()
