"""The decisions about leases, by properties: shares, the table of a store, and what a member believes that it holds."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lease_world import Holdings

# Private: pure decisions, which the public doors reach only through time and chance.
from wme_async.offsets.lease_table import LeaseTable, share_of

OWNERS = ["a", "b", "c", "d"]
PARTS = 6
TTL = 30.0

members = st.lists(st.text(max_size=3), min_size=1, max_size=15, unique=True).map(sorted)
parts = st.integers(1, 60)


@given(parts, members)
def test_shares_add_up_and_differ_by_one(count: int, group: list[str]) -> None:
    shares = [share_of(count, member, group) for member in group]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1


@given(parts, members, st.text(max_size=3))
def test_who_joins_makes_no_share_larger(count: int, group: list[str], joining: str) -> None:
    larger = sorted({*group, joining})
    for member in group:
        assert share_of(count, member, larger) <= share_of(count, member, group)


def test_who_is_not_in_the_group_has_no_share() -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the wording is Python's
        share_of(10, "x", ["a"])


steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "renew", "give", "leave", "wait"]),
        st.sampled_from(OWNERS),
        st.floats(0, 2 * TTL),
        st.sets(st.integers(0, PARTS - 1)),
    ),
    max_size=60,
)


@given(steps)
def test_a_table_never_has_two_owners_of_a_part_and_its_tokens_only_grow(
    script: list[tuple[str, str, float, set[int]]],
) -> None:
    table, now = LeaseTable(), 0.0
    tokens: dict[int, int] = {}
    held: dict[int, tuple[str, int, float]] = {}  # what a perfect observer knows
    for action, owner, seconds, some in script:
        if action == "take":
            before = {part for part, (_, _, until) in held.items() if until > now}
            taken = table.take(owner, PARTS, TTL, now)
            live = table.members(now)
            assert owner in live
            for part, token in taken.items():
                assert part not in before
                assert token > tokens.get(part, 0)
                tokens[part] = token
                held[part] = (owner, token, now + TTL)
            own = [part for part, (other, _, until) in held.items() if other == owner and until > now]
            assert len(own) <= max(share_of(PARTS, owner, live), len(own) - len(taken))
            free = [part for part in range(PARTS) if part not in held or held[part][2] <= now]
            assert not free or len(own) >= share_of(PARTS, owner, live)
        elif action == "renew":
            expected = {p: token for p, (other, token, until) in held.items() if other == owner and until > now}
            assert table.renew(owner, TTL, now) == expected
            held.update({part: (owner, token, now + TTL) for part, token in expected.items()})
        elif action == "wait":
            now += seconds
        else:
            given_back = None if action == "leave" else some
            table.give(owner, given_back)
            held = {
                part: lease
                for part, lease in held.items()
                if lease[0] != owner or (given_back is not None and part not in given_back)
            }
            assert action != "leave" or owner not in table.members(now)
        for part, token in tokens.items():
            # Whoever took it last may save, until it is given back or taken by somebody else.
            for other in OWNERS:
                assert table.holds(other, part, token) == (part in held and held[part][:2] == (other, token))
                assert not table.holds(other, part, token - 1)


tokens = st.dictionaries(st.integers(0, PARTS - 1), st.integers(1, 4))


@given(st.lists(st.tuples(st.sampled_from(["renew", "take", "end", "surplus"]), tokens, st.integers(0, PARTS))))
def test_a_member_believes_what_the_store_says_but_never_that_an_ended_lease_begins_again(
    script: list[tuple[str, Mapping[int, int], int]],
) -> None:
    holdings, sent = Holdings(TTL), 0.0
    ended: set[tuple[int, int]] = set()
    newest: dict[int, int] = {}
    for action, numbers, number in script:
        sent += 1.0
        # As a store has it: a part comes with the same token, or a higher one.
        answer = {part: max(token, newest.get(part, 0)) for part, token in numbers.items()}
        before = {part: holding.token for part, holding in holdings.by_part.items()}
        if action == "renew":
            newest.update(answer)
            renewal = holdings.renew(answer, sent)
            ended |= {(holding.part, holding.token) for holding in renewal.lost}
            assert {holding.part for holding in renewal.lost} == {p for p in before if answer.get(p) != before[p]}
            assert set(renewal.stale) == {part for part, token in answer.items() if (part, token) in ended}
            assert {holding.part for holding in renewal.taken} == {
                part for part, token in answer.items() if before.get(part) != token and (part, token) not in ended
            }
            assert all(holdings.by_part[part].token == token for part, token in answer.items() if part in before)
            assert all(sent < holding.deadline < sent + TTL for holding in holdings.by_part.values())
        elif action == "take":
            free = {p: newest.get(p, 0) + 1 for p in answer if p not in before}
            newest.update(free)
            assert {holding.part: holding.token for holding in holdings.take(free, sent)} == free
        elif action == "end" and before:
            holding = holdings.by_part[sorted(before)[number % len(before)]]
            holdings.end(holding)
            holdings.end(holding)
            ended.add((holding.part, holding.token))
        elif action == "surplus":
            staying = [holding for holding in holdings.by_part.values() if not holding.leaving]
            surplus = holdings.surplus(number)
            assert len(surplus) == max(0, len(staying) - number)
            assert all(holding.leaving for holding in surplus)
            assert holdings.surplus(number) == []
        assert all((part, holding.token) not in ended for part, holding in holdings.by_part.items())


def test_the_end_of_an_earlier_lease_leaves_the_next_one() -> None:
    holdings = Holdings(TTL)
    (old,) = holdings.take({0: 1}, 0.0)
    holdings.end(old)
    (new,) = holdings.take({0: 2}, 1.0)
    holdings.end(old)
    assert holdings.by_part == {0: new}
