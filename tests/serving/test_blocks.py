"""Blocks of keys and values: nobody holds what he was not given, and what is found is what was asked for.

pytest tests/serving/test_blocks.py
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.serving.blocks import BLOCK, Blocks, blocks_of, link, root

TOKENS = list(range(BLOCK))


def test_a_block_is_taken_by_one_only():
    blocks = Blocks(3)
    assert sorted(blocks.take() for _ in range(3)) == [0, 1, 2] and blocks.available == 0
    with pytest.raises(LookupError, match="all 3 blocks are held"):
        blocks.take()


def test_a_known_block_is_found_held_or_not_until_its_place_is_needed():
    blocks = Blocks(2)
    block = blocks.take()
    assert blocks.find(b"x") is None
    blocks.publish(block, b"x")
    blocks.release([block])
    assert blocks.find(b"x") == block and blocks.available == 2
    blocks.hold(block)
    assert blocks.available == 1 and blocks.take() != block
    blocks.release([block])
    assert blocks.take() == block and blocks.find(b"x") is None and blocks.known == 0


def test_a_block_that_two_hold_stays_when_one_lets_go():
    blocks = Blocks(1)
    block = blocks.take()
    blocks.publish(block, b"x")
    blocks.hold(block)
    blocks.release([block])
    assert blocks.available == 0 and blocks.holders(block) == 1


def test_the_longest_unused_is_forgotten_first_and_of_one_row_its_end():
    blocks = Blocks(4)
    old, new = [blocks.take(), blocks.take()], [blocks.take(), blocks.take()]
    for name, table in (("old", old), ("new", new)):
        for at, block in enumerate(table):
            blocks.publish(block, f"{name}{at}".encode())
    blocks.release(old)
    blocks.release(new)
    blocks.hold(old[0])  # used again: longest unused is what was behind it
    blocks.release([old[0]])
    assert [blocks.take() for _ in range(4)] == [old[1], new[1], new[0], old[0]]


def test_of_two_blocks_with_the_same_content_the_first_is_known_and_the_other_one_is_free_when_let_go():
    blocks = Blocks(2)
    first, second = blocks.take(), blocks.take()
    blocks.publish(first, b"x")
    blocks.publish(second, b"x")
    blocks.release([second])
    assert blocks.find(b"x") == first and blocks.take() == second


@given(st.lists(st.sampled_from(["take", "publish", "hold", "release"]), max_size=60), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_block_is_free_idle_or_held_whatever_is_done(verbs, dice):
    """Against a model: who holds what, and what is known, each written down apart."""
    blocks, held, known, count = Blocks(5), [], {}, 0
    for verb in verbs:
        if verb == "take" and blocks.available:
            block = blocks.take()
            assert block not in held
            known = {digest: b for digest, b in known.items() if b != block}
            held.append(block)
        elif verb == "publish" and (unknown := [b for b in held if b not in known.values()]):
            count += 1
            known[str(count).encode()] = block = dice.choice(unknown)
            blocks.publish(block, str(count).encode())
        elif verb == "hold" and known:
            held.append(blocks.find(dice.choice(sorted(known))))
            blocks.hold(held[-1])
        elif verb == "release" and held:
            blocks.release([held.pop(dice.randrange(len(held)))])
        assert {digest: blocks.find(digest) for digest in known} == known and blocks.known == len(known)
        assert [blocks.holders(b) for b in range(5)] == [held.count(b) for b in range(5)]
        assert blocks.available == 5 - len(set(held))


def test_a_digest_tells_apart_adapters_tokens_and_what_was_before():
    """Each pair differs in one thing; the last ones are what a shorter digest would mix up: order, and sign."""
    base = link(root(""), TOKENS)
    others = [link(root("a"), TOKENS), link(root("b"), TOKENS), link(base, TOKENS), link(root(""), TOKENS[::-1]),
              link(root(""), [-1, *TOKENS[1:]]), link(root(""), [2**32 - 1, *TOKENS[1:]]), root(""), root("a")]
    assert len({base, *others}) == len(others) + 1
    assert link(root(""), list(TOKENS)) == base


def test_the_blocks_of_a_row():
    assert [blocks_of(n) for n in (0, 1, BLOCK, BLOCK + 1, 3 * BLOCK)] == [0, 1, 1, 2, 3]
