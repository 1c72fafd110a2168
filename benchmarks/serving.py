"""The engine against what it replaces: the same words, sooner.

    python benchmarks/serving.py                            # all of it, most of ten minutes on two cores
    python benchmarks/serving.py --layers 2 --width 192 --rounds 1 --tokens 4 --tower 2      # to see that it runs

- turn: the first token of a second turn whose 664 tokens are known, against one that is computed anew.
- crowd: eight conversations at once, against one after another and against `generate` on a batch of all eight; in
  float32, and in bfloat16.
- picture: the first token about a picture that is known (its conversation is not), against one that is new; the tower
  has the shape of CLIP ViT-L/14-336, the language model is tiny.
- nf4: a token of the engine on the quantized language model, against `generate` of transformers in bfloat16.

Language models have random weights in the shape of SmolLM2-360M but for its vocabulary, which is the embedded model's.
Answers are compared word by word first; those of nf4, which rounds, are not its peer's. Those in bfloat16 may part
where two words differ by less than 0.05 in their log-probability, which is looked at.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import ratios, seconds, surroundings, told, write
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from serve.engine import Engine
from serve.tickets import Options
from vlchat import VLChatForConditionalGeneration, VLChatProcessor
from vlchat.chat import Chat, ask_messages
from vlchat.towers import clip_image_processor

TARGETS = {
    "anew / known turn": 10.0, "one by one / at once": 4.0, "static batch / at once": 0.95, "known / new picture": 0.05,
    "bfloat16 generate / nf4": 2.5,
}  # fmt: skip
CROWD = 8
_ALIKE = 0.05  # in log-probability: what bfloat16 rounds
KNOWN, NEW = 664, 40  # tokens of `turn`


def main() -> None:
    arguments = read_arguments()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    embedded = Chat.load()
    found: dict[str, float] = {}
    times: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = save(Path(name), embedded, arguments)
        chat = Chat.load(folder)
        turn(chat, arguments, found, times)
        crowd(chat, arguments, found, times)
        del chat
        crowd(Chat.load(folder, dtype="bfloat16"), arguments, found, times, " in bfloat16")
        nf4(folder, arguments, found, times)
    picture(embedded, arguments, found, times)
    for pair, ratio in found.items():
        target = TARGETS[pair.removesuffix(" in bfloat16")]
        print(f"{pair}: {ratio:.3g}, target {'at most' if pair.startswith('known') else 'at least'} {target}")
    write(arguments.out, {"shape": {name: value for name, value in vars(arguments).items() if name != "out"},
                          "targets": TARGETS, "ratios": found, "seconds": times,
                          **surroundings("python benchmarks/serving.py")})  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="of the language model")
    parser.add_argument("--width", type=int, default=960, help="of the language model, a multiple of 64")
    parser.add_argument("--tower", type=int, default=24, help="layers of the tower of `picture`")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--rounds", type=int, default=3, help="of each, of which the median is told")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    return parser.parse_args()


def save(folder: Path, embedded: Chat, arguments: argparse.Namespace) -> Path:
    """A model of random weights that never ends an answer by itself."""
    tokenizer, heads = embedded.tokenizer, arguments.width // 64
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=arguments.width, intermediate_size=8 * arguments.width // 3,
            num_hidden_layers=arguments.layers, num_attention_heads=heads,
            num_key_value_heads=heads // 3 if heads % 3 == 0 else heads, max_position_embeddings=4096,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    return _saved(folder, embedded.model.model.vision_tower, embedded.processor.image_processor, language, tokenizer)


def _saved(folder: Path, tower: Any, pictures: Any, language: Any, tokenizer: Any) -> Path:
    model = VLChatForConditionalGeneration.from_backbones(
        tower, language, {"type": "mlp", "depth": 2}, tokenizer=tokenizer
    )
    processor = VLChatProcessor.from_backbones(pictures, tokenizer, model.config.image_seq_length, "chatml")
    config = model.generation_config
    assert config is not None
    config.suppress_tokens = sorted({*(config.suppress_tokens or ()), *tokenizer.all_special_ids})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture_of(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8))


def answer(engine: Engine, messages: Any, tokens: int, scope: str = "") -> str:
    return "".join(engine.submit(messages, Options(tokens, scope=scope)))


def turn(chat: Chat, arguments: argparse.Namespace, found: dict[str, float], times: dict[str, Any]) -> None:
    """A second turn, with and without what was computed for the first one."""
    engine = Engine(chat)

    def tokens(messages: Any) -> int:
        return len(chat.prepare(messages)[0]["input_ids"][0])

    def filled(ask: Callable[[str], Any], most: int) -> Any:
        """The longest question of at most so many tokens, the conversation included."""
        text = "what is to be seen in this picture and where is it " * 60
        while tokens(ask(text)) > most:
            text = text[:-6]
        return ask(text)

    first = filled(lambda text: ask_messages(picture_of(0), text), KNOWN)
    told = [*first, {"role": "assistant", "content": answer(engine, first, 2)}]
    more = filled(lambda text: [*told, {"role": "user", "content": text}], KNOWN + NEW)

    def first_token(known: bool) -> str:
        if not known:
            engine.prefixes.clear()
        return answer(engine, more, 1)

    def known() -> None:
        first_token(True)

    assert first_token(False) == first_token(True)
    engine.prefixes.clear()
    answer(engine, first, 2)
    ticket = engine.submit(more, Options(1))
    "".join(ticket)
    assert ticket.end is not None
    print(f"turn: {ticket.end.cached_tokens} of {ticket.end.prompt_tokens} tokens are known")

    def prepared(work: Callable[[], Any], before: Callable[[], Any]) -> float:
        before()
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def remember() -> None:
        engine.prefixes.clear()
        answer(engine, first, 2)

    taken: dict[str, list[float]] = {"known": [], "anew": []}
    for _ in range(arguments.rounds):
        taken["known"].append(prepared(known, remember))
        taken["anew"].append(prepared(known, engine.prefixes.clear))
    engine.close()
    times["turn"] = taken
    found["anew / known turn"] = statistics.median(taken["anew"]) / statistics.median(taken["known"])


def crowd(
    chat: Chat, arguments: argparse.Namespace, found: dict[str, float], times: dict[str, Any], which: str = ""
) -> None:
    """Eight conversations of unlike lengths. In bfloat16 answers may part where two words are as good as alike."""
    engine = Engine(chat, most=CROWD)
    conversations = [ask_messages(picture_of(one), "what is it? " * (one + 1)) for one in range(CROWD)]

    def at_once() -> list[str]:
        engine.prefixes.clear()
        engine.pictures.clear()
        tickets = [engine.submit(one, Options(arguments.tokens)) for one in conversations]
        return ["".join(ticket).strip() for ticket in tickets]

    peers: dict[str, Callable[[], list[str]]] = {
        "at once": at_once,
        "one by one": lambda: [chat.batch([one], max_new_tokens=arguments.tokens)[0] for one in conversations],
        "static batch": lambda: chat.batch(conversations, max_new_tokens=arguments.tokens),
    }
    answers = {name: work() for name, work in peers.items()}
    if not answers["at once"] == answers["one by one"]:
        gap = parted(engine, conversations, arguments.tokens)
        print(f"answers part where two words differ by at most {gap:.3f} in their log-probability")
        if gap > _ALIKE or chat.model.dtype == torch.float32:
            raise SystemExit(f"other answers at once than one by one: {answers}")
    taken = seconds(peers, arguments.rounds)
    engine.close()
    print(told(taken))
    times["crowd" + which] = taken
    for peer in ("one by one", "static batch"):
        found[f"{peer} / at once{which}"] = ratios(taken, peer, "at once")["median_wall"]


def parted(engine: Engine, conversations: list[Any], tokens: int) -> float:
    """How far apart the likeliest words are, at most, where the engine's answers alone and at once begin to differ."""

    def told(together: bool) -> list[list[Any]]:
        engine.prefixes.clear()
        tickets = []
        for one in conversations:
            tickets.append(engine.submit(one, Options(tokens, logprobs=5)))
            if not together:
                "".join(tickets[-1])
        for ticket in tickets if together else ():
            "".join(ticket)
        return [list(ticket.likely) for ticket in tickets]

    gap = 0.0
    for alone, once in zip(told(False), told(True), strict=True):
        for one, other in zip(alone, once, strict=True):
            if one.text != other.text:
                gap = max(gap, one.logprob - dict(one.others).get(other.text, -float("inf")))
                break
    return gap


def nf4(folder: Path, arguments: argparse.Namespace, found: dict[str, float], times: dict[str, Any]) -> None:
    """A token of an answer, the prompt left out."""
    quantized, peer = Chat.load(folder, quantize="nf4"), Chat.load(folder, dtype="bfloat16")
    engine, messages = Engine(quantized), ask_messages(picture_of(0), "what is it?")
    taken: dict[str, list[float]] = {"nf4": [], "bfloat16 generate": []}
    for _ in range(arguments.rounds + 1):
        for name, work in (
            ("nf4", lambda tokens: answer(engine, messages, tokens)),
            ("bfloat16 generate", lambda tokens: peer.batch([messages], max_new_tokens=tokens)),
        ):
            spent = []
            for tokens in (1, 1 + arguments.tokens):
                began = time.perf_counter()
                work(tokens)
                spent.append(time.perf_counter() - began)
            taken[name].append((spent[1] - spent[0]) / arguments.tokens)
    engine.close()
    times["nf4"] = {name: each[1:] for name, each in taken.items()}
    medians = {name: statistics.median(each) for name, each in times["nf4"].items()}
    print(", ".join(f"{name} {1000 * each:.1f} ms a token" for name, each in medians.items()))
    found["bfloat16 generate / nf4"] = medians["bfloat16 generate"] / medians["nf4"]


def picture(embedded: Chat, arguments: argparse.Namespace, found: dict[str, float], times: dict[str, Any]) -> None:
    """The first token about a picture."""
    tokenizer = embedded.tokenizer
    tower = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=arguments.tower,
                         num_attention_heads=16, image_size=336, patch_size=14)
    )  # fmt: skip
    language = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                    num_attention_heads=4, max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id)
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        chat = Chat.load(_saved(Path(name), tower, clip_image_processor(336), language, tokenizer))
    engine = Engine(chat)
    taken: dict[str, list[float]] = {"new": [], "known": []}
    for round_ in range(arguments.rounds + 1):
        said = []
        for which in ("new", "known"):
            began = time.perf_counter()
            said.append(answer(engine, ask_messages(picture_of(round_), "what is it?"), 3, scope=f"{round_} {which}"))
            taken[which].append(time.perf_counter() - began)
        assert said[0] == said[1]
    engine.close()
    times["picture"] = {which: each[1:] for which, each in taken.items()}
    medians = {which: statistics.median(each) for which, each in times["picture"].items()}
    print(", ".join(f"{which} picture {1000 * each:.0f} ms" for which, each in medians.items()))
    found["known / new picture"] = medians["known"] / medians["new"]


if __name__ == "__main__":
    main()
