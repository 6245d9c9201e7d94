"""What a user writes with types: mypy --strict says nothing about it, and it runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import moesaic
from moesaic import Captures, Chunk, Config, GenerateOptions, Generation, Model, Plan, Timings

common: GenerateOptions = {"max_tokens": 4, "temperature": 0.0, "stop": ("\n\n",)}


def mean_logprob(m: Model, text: str) -> float:
    options: GenerateOptions = {**common, "logprobs": 2}
    g: Generation = m.generate(text, **options)
    assert g.top_ids.shape == (len(g.tokens), 2)
    return float(g.logprobs.mean())


def inside(m: Model) -> npt.NDArray[np.float32]:
    c: Captures = m.capture("In the beginning", "blocks.*.resid_post", logits="last")
    rows = c["blocks.1.resid_post"]
    best = int(c.logits.argmax())
    return np.asarray(rows[:, :8], dtype=np.float32) + best


def in_turn(m: Model) -> list[str]:
    texts = [g.text for g in m.generate(("In the", "And the"), **common)]
    texts += [g.text for g in m.generate(["In the", [3, 4]], seed=1, max_tokens=2)]
    texts += [g.text for g in m.generate([np.array([3, 4])], max_tokens=2)]
    chunks: list[Chunk] = list(m.stream("In the", **common))
    messages = [{"role": "user", "content": "Hello"}]
    reply = m.chat(messages, **common)
    messages.append(reply.message)
    return [*texts, "".join(c.text for c in chunks), reply.text]


def sessions(m: Model) -> tuple[int, ...]:
    with m.session() as s:
        s.forward([1, 2], logits=None)
        with s.fork(1) as branch:
            return (*s.tokens.tolist(), len(branch))


def main() -> None:
    with Model("demo", n_ctx=256, progress=False) as m:
        config: Config = m.config
        t: Timings = m.generate("It", max_tokens=1).timings
        print(config.layers[0].ffn, t.prompt_tokens, mean_logprob(m, "It was"), inside(m).shape)
        print(in_turn(m), sessions(m), m.score(["It"], [" was"])[0][0])
    plan: Plan = Plan.on_paper("demo", nodes=["a", "b"], memory=("1G", "2G"), bandwidth="1GB/s",
                               matmul="1T")  # fmt: skip
    print(plan.nodes[0].layers, plan.predictions[0].decode_tokens_per_s > 0)
    try:
        moesaic.GGUF("none.gguf")
    except moesaic.IoError as error:
        print(type(error).__name__)


if __name__ == "__main__":
    main()
