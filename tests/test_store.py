"""Conversations on the disk: kept whole, found again, nobody else's, and gone when they are deleted."""

from __future__ import annotations

import hashlib
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve.store import FILE, Absent, Conversation, Store
from vlchat.errors import VLChatError

ROOT = Path(__file__).resolve().parent.parent
CAT, DOG = b"the bytes of a cat", b"the bytes of a dog"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "history" if request.param == "disk" else None)
    yield store
    store.close()


def talk(
    store: Store, owner: str = "anna", question: str = "What is this?", answer: str = "A cat."
) -> tuple[str, int, int]:
    """The ids of a conversation, its question and its answer."""
    conversation = store.begin(owner).id
    asked = store.add(owner, conversation, "user", question, [("cat.png", CAT)])
    return conversation, asked, store.add(owner, conversation, "assistant", answer, facts={"tokens": 3})


def titles(found: list[Conversation]) -> list[str]:
    return [one.title for one in found]


def told(call: Callable[[], object]) -> str:
    with pytest.raises(VLChatError) as error:
        call()
    return str(error.value)


def test_a_conversation_is_there_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "history"
    first = Store(folder)
    begun = first.begin("anna", {"temperature": 0.5, "model": "模型"})
    asked = first.add("anna", begun.id, "user", "What are\nthese?", [("cat.png", CAT), ("dog.png", DOG)])
    answer = first.add("anna", begun.id, "assistant", "")
    first.finish("anna", answer, "A cat and a dog.", {"tokens": 6, "seconds": 0.5})
    first.rate("anna", answer, -1, "Two cats. ")
    first.close()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600

    store = Store(folder)
    (found,) = store.conversations("anna")
    assert (found.id, found.title, found.settings) == (begun.id, "What are these?", begun.settings)
    question, reply = store.turns("anna", found.id)
    assert (question.id, question.role, question.text) == (asked, "user", "What are\nthese?")
    assert [(one.name, store.picture("anna", one.digest)) for one in question.pictures] == [
        ("cat.png", CAT),
        ("dog.png", DOG),
    ]
    assert (reply.text, reply.facts) == ("A cat and a dog.", {"tokens": 6, "seconds": 0.5})
    assert (reply.rating, reply.correction) == (-1, "Two cats.")
    store.close()
    assert told(lambda: store.turns("anna", found.id)) == "The server is stopping. Ask again in a minute."


def test_pinned_ones_come_first_then_the_newest(store: Store) -> None:
    one, two, three = (talk(store, question=name)[0] for name in ("one", "two", "three"))
    assert titles(store.conversations("anna")) == ["three", "two", "one"]
    store.add("anna", one, "user", "more")
    store.pin("anna", two)
    assert titles(store.conversations("anna")) == ["two", "one", "three"]
    store.pin("anna", two, False)
    store.delete("anna", three)
    assert titles(store.conversations("anna")) == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"owl", "Ärger 100%", "猫在桌子上吗", "a_b"}),
        ("OWL", {"owl"}),
        ("ärger", {"Ärger 100%"}),
        ("A\u0308rger", {"Ärger 100%"}),  # decomposed, as some keyboards send it
        ("桌子", {"猫在桌子上吗"}),
        ("%", {"Ärger 100%"}),
        ("_", {"a_b"}),
        ("100% ärg", {"Ärger 100%"}),
        ("owl ärger", set()),
        ("said owl", {"owl"}),
        ("'\"*()-", set()),
        ("\ud800", set()),
        ("x " * 5000, set()),
    ],
)
def test_words_are_searched_in_titles_and_turns(store: Store, words: str, expected: set[str]) -> None:
    for title in ("owl", "Ärger 100%", "猫在桌子上吗", "a_b"):
        store.rename("anna", talk(store, answer=f"It said {title}" if title == "owl" else "Yes")[0], title)
    assert set(titles(store.conversations("anna", words))) == expected


def test_the_first_question_is_the_title_unless_people_gave_one(store: Store) -> None:
    long = "Which of the two animals on the left side of the table is larger than the other?"
    conversation, asked, _ = talk(store, question=long)
    title = store.conversation("anna", conversation).title
    assert title == "Which of the two animals on the left side of the table is…"
    store.add("anna", conversation, "user", "And now?")
    assert store.conversation("anna", conversation).title == title
    store.rename("anna", conversation, "  My\ncats ")
    store.cut("anna", conversation, asked)
    store.add("anna", conversation, "user", "", [("dog.png", DOG)])
    assert store.conversation("anna", conversation).title == "My cats"
    store.rename("anna", conversation, " ")
    assert store.conversation("anna", conversation).title == "dog.png"
    chinese = store.begin("anna").id
    store.add("anna", chinese, "user", "这" * 100)
    assert store.conversation("anna", chinese).title == "这" * 59 + "…"
    assert store.conversation("anna", store.begin("anna").id).title == ""


def test_a_picture_is_kept_once_and_goes_with_the_last_that_shows_it(store: Store) -> None:
    one, two = talk(store)[0], talk(store)[0]
    talk(store, owner="bob")
    kept = "SELECT count(*), sum(length(content)) FROM picture"
    assert store._tables.read(kept) == [(2, 2 * len(CAT))]
    store.delete("anna", one)
    assert store.picture("anna", digest(CAT)) == CAT
    store.delete("anna", two)
    with pytest.raises(Absent):
        store.picture("anna", digest(CAT))
    assert store.picture("bob", digest(CAT)) == CAT


def test_cut_takes_a_turn_and_all_after_it_and_keeps_their_feedback(store: Store) -> None:
    conversation, asked, answer = talk(store)
    later = store.add("anna", conversation, "user", "And this?")
    store.rate("anna", answer, 0, "A blimwort.")
    store.cut("anna", conversation, later)
    assert [turn.id for turn in store.turns("anna", conversation)] == [asked, answer]
    store.cut("anna", conversation, asked)
    assert store.turns("anna", conversation) == []
    (kept,) = store.rated("anna")
    assert [turn.text for turn in kept.turns] == ["What is this?", "A cat."]
    assert (kept.answer.correction, kept.answer.facts) == ("A blimwort.", {"tokens": 3})
    assert store.content(kept, kept.turns[0].pictures[0]) == CAT
    assert len(store.conversations("anna")) == 1, "what is kept for feedback is not listed"

    # It goes with its conversation, or when it is taken back.
    new = store.add("anna", conversation, "assistant", "Hm.")
    assert new > later, "no id is given twice"
    store.rate("anna", new, 1)
    store.cut("anna", conversation, new)
    assert len(store.rated("anna")) == 2
    store.rate("anna", kept.answer.id, 0)
    assert [one.answer.text for one in store.rated("anna")] == ["Hm."]
    store.delete("anna", conversation)
    assert store.rated("anna") == [] and store._tables.read("SELECT * FROM turn") == []


def test_of_a_history_that_is_off_only_the_rated_exchange_is_kept(store: Store) -> None:
    assert store.keeps("anna")
    store.keep("anna", False)
    assert not store.keeps("anna") and store.keeps("bob")
    aside = Store(None)
    conversation, _, first = talk(aside, answer="The first.")
    aside.add("anna", conversation, "user", "What colour?")
    second = aside.add("anna", conversation, "assistant", "Red.")
    for rating in (1, -1):
        aside.rate("anna", second, rating, "Blue.")
        store.keep_rated("anna", aside, second)
    assert store.conversations("anna") == []
    (kept,) = store.rated("anna")
    assert [turn.text for turn in kept.turns] == ["What colour?", "Red."]
    assert [store.content(kept, picture) for picture in kept.turns[0].pictures] == [CAT], "which was asked about"
    assert (kept.answer.rating, kept.answer.correction) == (-1, "Blue.")
    with pytest.raises(Absent):
        store.keep_rated("bob", aside, first)
    aside.rate("anna", second, 0)
    store.keep_rated("anna", aside, second)
    assert store.rated(None) == [] and store._tables.read("SELECT * FROM picture") == []


def test_votes(store: Store) -> None:
    conversation, asked, answer = talk(store)
    for chosen in ("base", "", "tuned"):
        store.vote("anna", conversation, asked, {"base": "a cat", "tuned": "a dog"}, chosen)
    (vote,) = store.votes("anna")
    assert (vote.question.text, vote.answers, vote.chosen) == (
        "What is this?",
        {"base": "a cat", "tuned": "a dog"},
        "tuned",
    )
    assert "one of the answers" in told(lambda: store.vote("anna", conversation, asked, {"base": "x"}, "other"))
    told(lambda: store.vote("anna", conversation, answer, {"base": "x"}, ""))
    told(lambda: store.vote("anna", talk(store)[0], asked, {"base": "x"}, ""))
    assert store.votes("bob") == [] and store.votes(None) == [vote]
    store.unvote("anna", asked)
    assert store.votes("anna") == []


def test_only_answers_are_rated_and_only_with_a_thumb(store: Store) -> None:
    _, asked, answer = talk(store)
    assert told(lambda: store.rate("anna", asked, 1)) == "Only answers are rated."
    assert "1, -1 or 0" in told(lambda: store.rate("anna", answer, 2))


# One call of each method by somebody, with ids that are another's. None where there are no ids to give.
CALLS: dict[str, Callable[[Store, str, str, int, int], object] | None] = {
    "conversation": lambda s, who, c, q, a: s.conversation(who, c),
    "turns": lambda s, who, c, q, a: s.turns(who, c),
    "add": lambda s, who, c, q, a: s.add(who, c, "user", "mine"),
    "finish": lambda s, who, c, q, a: s.finish(who, a, "mine", {}),
    "cut": lambda s, who, c, q, a: s.cut(who, c, q),
    "replace": lambda s, who, c, q, a: s.replace(who, c, q, "mine", []),
    "picture": lambda s, who, c, q, a: s.picture(who, digest(CAT)),
    "settle": lambda s, who, c, q, a: s.settle(who, c, {"mine": 1}),
    "rename": lambda s, who, c, q, a: s.rename(who, c, "mine"),
    "pin": lambda s, who, c, q, a: s.pin(who, c),
    "delete": lambda s, who, c, q, a: s.delete(who, c),
    "rate": lambda s, who, c, q, a: s.rate(who, a, 1, "mine"),
    "keep_rated": lambda s, who, c, q, a: s.keep_rated(who, s, a),
    "vote": lambda s, who, c, q, a: s.vote(who, c, q, {"m": "mine"}, "m"),
    "unvote": lambda s, who, c, q, a: s.unvote(who, q),
    "conversations": None, "begin": None, "erase": None, "keeps": None, "keep": None, "rated": None, "votes": None,
    "content": None, "close": None,
}  # fmt: skip


def test_every_method_refuses_what_is_somebody_elses_like_what_is_not_there(store: Store) -> None:
    public = {name for name in vars(Store) if not name.startswith("_")}
    assert public == set(CALLS), "a new method is tried here, too"
    conversation, asked, answer = talk(store)
    store.rate("anna", answer, 1, "A blimwort.")
    store.vote("anna", conversation, asked, {"m": "x"}, "m")
    before = store._tables.read("SELECT * FROM conversation"), store.turns("anna", conversation), store.votes(None)
    bobs = talk(store, owner="bob", question="Bob's")[0]
    store.delete("bob", bobs)
    absent = "no-such-conversation-00", 999_999, 10**30
    for name, call in CALLS.items():
        if call is None:
            continue
        for stranger in ("bob", "", "Anna", "anna ", "anna\0", "\ud800"):
            with pytest.raises(Absent) as refused:
                call(store, stranger, conversation, asked, answer)
            if name != "picture":
                with pytest.raises(Absent) as missing:
                    call(store, stranger, *absent)
                assert str(refused.value) == str(missing.value), name
    for stranger in ("bob", ""):
        assert store.conversations(stranger) == store.conversations(stranger, "cat") == []
        assert store.rated(stranger) == store.votes(stranger) == []  # type: ignore[comparison-overlap]
        store.erase(stranger)
    now = store._tables.read("SELECT * FROM conversation"), store.turns("anna", conversation), store.votes(None)
    assert now == before
    with pytest.raises(Absent):
        store.cut("anna", talk(store)[0], asked)  # her own turn, of another conversation


def test_the_oldest_make_room(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        store = Store(folder, 1_000_000)
        begun = []
        for number in range(8):
            owner = ("bob", "anna")[number % 2]
            begun.append(store.begin(owner).id)
            picture = random.Random(number).randbytes(300_000)
            store.add(owner, begun[-1], "user", "?", [("x.png", picture)])
        assert [one.id for one in store.conversations("anna")] == [begun[7], begun[5]]
        assert [one.id for one in store.conversations("bob")] == [begun[6]]
        large = store.begin("anna").id
        store.add("anna", large, "user", "?", [("x.png", bytes(2_000_000))])
        assert [one.id for one in store.conversations("anna")] == [large], "what is added stays"
        assert not store.conversations("bob")
        store.close()


def test_no_text_breaks_it(store: Store) -> None:
    draw = random.Random(0)
    alphabet = [
        "\0",
        "\ud800",
        "\udc00",
        "\ud83d",
        "\ude00",
        "'",
        '"',
        ";",
        "\\",
        "%",
        "猫",
        "👍",
        "\u202e",
        "\n",
        "a",
        " ",
    ]
    for _ in range(100):
        texts = ["".join(draw.choices(alphabet, k=draw.randrange(30))) for _ in range(8)]
        name, question, answer, correction, title, words, key, value = texts
        conversation = store.begin(name, {key: value, "list": [value, None, 1.5]}).id
        asked = store.add(name, conversation, "user", question, [(title, b""), (title, b"\0")])
        turn = store.add(name, conversation, "assistant", "", facts={key: {value: 1}})
        store.finish(name, turn, answer, {key: [value]})
        store.rate(name, turn, -1, correction)
        store.vote(name, conversation, asked, {key: answer, "other": value}, key)
        store.rename(name, conversation, title)
        store.conversations(name, words)
        (kept,) = [one for one in store.conversations(name) if one.id == conversation]
        turns = store.turns(name, conversation)
        repr([kept, turns, store.votes(name), store.rated(name)]).encode()  # UTF-8 can hold it
        if not any("\ud800" <= letter <= "\udfff" for letter in question + answer):
            assert [one.text for one in turns] == [question, answer]
        store.cut(name, conversation, turn)
        store.erase(name)
    assert store._tables.read("SELECT count(*) FROM turn") == [(0,)]


def test_nothing_of_what_was_erased_stays_on_the_disk(tmp_path: Path) -> None:
    secret = "a secret that nobody else may read " * 20
    picture = secret.encode() * 5000
    store = Store(tmp_path)
    talk(store, owner="bob")
    for whole in (True, False):
        conversation = store.begin("anna").id
        store.add("anna", conversation, "user", secret, [(secret, picture)])
        answer = store.add("anna", conversation, "assistant", secret)
        store.rate("anna", answer, 1, secret)
        assert any(secret.encode()[:30] in file.read_bytes() for file in tmp_path.iterdir())
        store.erase("anna") if whole else store.delete("anna", conversation)
        assert not any(b"a secret" in file.read_bytes() for file in tmp_path.iterdir())
    assert len(store.conversations("bob")) == 1
    store.close()


def test_a_file_that_is_none_of_ours_is_left_alone_and_told_of(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"These are notes, and no database. " * 100)
    assert "Move it away" in told(lambda: Store(tmp_path))
    assert (tmp_path / FILE).read_bytes().startswith(b"These are notes")
    (tmp_path / FILE).unlink()

    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = (tmp_path / FILE).read_bytes()
    assert "another program's file" in told(lambda: Store(tmp_path))
    assert (tmp_path / FILE).read_bytes() == before
    (tmp_path / FILE).unlink()

    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    message = told(lambda: Store(tmp_path))
    assert "newer vlchat" in message and "99" in message and "Update vlchat" in message


def test_a_place_that_cannot_be_written_to_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Name a folder that you may write to" in told(lambda: Store(tmp_path / "file" / "history"))
    assert "Name a folder that you may write to" in told(lambda: Store(Path("/proc/history")))
    (tmp_path / "folder" / FILE).mkdir(parents=True)
    assert "Name a folder that you may write to" in told(lambda: Store(tmp_path / "folder"))


WRITER = """
import sys
from pathlib import Path
from serve.store import Store

store = Store(Path(sys.argv[1]))
while True:
    id = store.begin("anna").id
    store.add("anna", id, "user", id, [("picture.png", id.encode() * 20_000)])
    store.add("anna", id, "assistant", id)
    print(id, flush=True)
"""


def test_a_server_that_is_killed_leaves_everything_whole(tmp_path: Path) -> None:
    done: list[str] = []
    for round in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        done += [writer.stdout.readline().strip() for _ in range(3 + 4 * round)]
        writer.send_signal(signal.SIGKILL)
        done += writer.stdout.read().split()
        writer.wait()
        store = Store(tmp_path)
        assert store._tables.read("PRAGMA integrity_check") == [("ok",)]
        assert store._tables.read("PRAGMA foreign_key_check") == []
        for id in done:
            question, answer = store.turns("anna", id)
            assert question.text == answer.text == id
            assert store.picture("anna", question.pictures[0].digest) == id.encode() * 20_000
        assert len(store.conversations("anna")) <= len(done) + round + 1
        store.close()


FILLER = """
import resource, sys
from pathlib import Path
from serve.store import Store
from vlchat.errors import VLChatError

store = Store(Path(sys.argv[1]))
id = store.begin("anna").id
store.add("anna", id, "user", "before")
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    store.add("anna", id, "user", "too much", [("picture.png", bytes(range(256)) * 2**14)])
except VLChatError as error:
    print(error)
print([turn.text for turn in store.turns("anna", id)])
"""


def test_a_full_disk_is_told_of_and_keeps_what_was_there(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="limits of a process need Unix")
    run = subprocess.run([sys.executable, "-c", FILLER, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    message, turns = run.stdout.splitlines()
    assert "make room on its disk" in message and str(tmp_path) not in message
    assert turns == "['before']"


def test_many_threads_write_and_read_at_once(store: Store) -> None:
    errors: list[BaseException] = []

    def work(owner: str) -> None:
        try:
            for number in range(20):
                conversation, _, answer = talk(store, owner, f"{owner} {number}")
                store.finish(owner, answer, owner, {})
                assert {one.title.split()[0] for one in store.conversations(owner)} == {owner}
                if number % 4 == 0:
                    store.delete(owner, conversation)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"owner-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for number in range(8):
        found = store.conversations(f"owner-{number}")
        assert len(found) == 15
        assert all(store.turns(f"owner-{number}", one.id)[1].text == f"owner-{number}" for one in found)


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    conversation, _, answer = talk(one)
    two.rate("anna", answer, 1)
    assert one.turns("anna", conversation)[1].rating == 1
    one.delete("anna", conversation)
    assert two.conversations("anna") == []
    one.close()
    two.close()
