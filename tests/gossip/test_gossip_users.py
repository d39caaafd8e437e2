"""Who is sent reports of loads."""

from __future__ import annotations

from blitzgw.gossip.users import MAX_USERS, USERS_S, Users


def test_a_user_is_one_for_a_while():
    users = Users()
    assert not users.has("a", 0.0)
    users.used("a", 1.0)
    assert users.has("a", 1.0 + 0.99 * USERS_S)
    assert users.at(1.0 + 0.99 * USERS_S) == ["a"]
    assert not users.has("a", 1.0 + USERS_S)
    assert users.at(1.0 + USERS_S) == []


def test_of_a_new_user_somebody_is_told():
    users, told = Users(), []
    users.on_new = lambda: told.append(1)
    for moment_s, n_told in ((0.0, 1), (1.0, 1), (1.0 + USERS_S, 2), (2.0 + USERS_S, 2)):
        users.used("a", moment_s)
        assert len(told) == n_told
    users.used("b", 2.0 + USERS_S)
    assert len(told) == 3


def test_who_is_gone_is_forgotten():
    users = Users()
    users.used("a", 0.0)
    users.forget("a")
    users.forget("b")
    assert users.at(0.0) == []


def test_of_many_the_latest_are_told():
    users = Users()
    for number in range(MAX_USERS):
        users.used(f"n{number}", float(number))
    users.used("n0", 40.0)  # the oldest but by name
    users.used("new", 40.0)
    assert len(users.at(40.0)) == MAX_USERS
    assert users.has("n0", 40.0)
    assert users.has("new", 40.0)
    assert not users.has("n1", 40.0)
