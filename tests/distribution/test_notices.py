"""What processes tell each other through a store of PyTorch; threads take their places."""

import threading

import pytest
import torch.distributed as dist

from keras_llm.distribution.base import ProcessLostError
from keras_llm.distribution.torch import notices
from keras_llm.distribution.torch.notices import Notices

pytestmark = pytest.mark.torch_only


@pytest.fixture
def three():
    store = dist.HashStore()
    return [Notices(store, rank, 3) for rank in range(3)]


def begun(target, *arguments):
    thread = threading.Thread(target=target, args=arguments)
    thread.start()
    return thread


def test_all_meet_as_often_as_they_come(three, capsys):
    for _ in range(2):
        waiting = [begun(one.meet, "save") for one in three[1:]]
        assert all(thread.is_alive() for thread in waiting)
        three[0].meet("save")
        for thread in waiting:
            thread.join(10.0)
            assert not thread.is_alive()
    assert capsys.readouterr().err == ""


def test_who_waits_for_long_says_for_whom(three, monkeypatch, capsys):
    monkeypatch.setattr(notices, "PATIENCE", 0.1)
    waiting = begun(three[0].meet, "save")
    waiting.join(0.5)
    said = capsys.readouterr().err
    assert said.startswith("Process 0 of 3 waits in save for process 1, 2. All processes have to ")
    for one in three[1:]:
        begun(one.meet, "save")
    waiting.join(10.0)
    assert not waiting.is_alive()


def test_nobody_waits_for_a_process_that_has_failed(three, monkeypatch):
    monkeypatch.setattr(notices, "PATIENCE", 0.1)
    three[1].tell(ValueError("a bad batch"), operations=3)
    reason = "Process 1 of 3 has ended the run: ValueError: a bad batch"
    assert three[0].reason() == reason
    with pytest.raises(ProcessLostError, match=reason):
        three[0].meet("save")
    with pytest.raises(ProcessLostError, match=reason), three[2].first_alone("write"):
        pass


def test_one_that_ends_is_waited_for_while_it_writes_its_last_checkpoint(three):
    three[1].tell(SystemExit(143), operations=3)
    waiting = [begun(one.meet, "save") for one in (three[0], three[2])]
    waiting[0].join(0.2)
    assert all(thread.is_alive() for thread in waiting)
    three[1].meet("save")
    for thread in waiting:
        thread.join(10.0)
        assert not thread.is_alive()


def test_the_first_works_before_the_others(three):
    order = []

    def work(one):
        with one.first_alone("write"):
            order.append(one.rank)

    others = [begun(work, one) for one in three[1:]]
    others[0].join(0.2)
    assert order == []
    work(three[0])
    for thread in others:
        thread.join(10.0)
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


def test_a_failure_that_all_have_alike_is_forgotten(three, monkeypatch):
    monkeypatch.setattr(notices, "GRACE", 5.0)
    for one in three:
        one.tell(ValueError("a wrong argument"), operations=4)
    assert all(one.all_have_failed() for one in three)
    assert all(one.reason() == "" for one in three)
    monkeypatch.setattr(notices, "GRACE", 0.1)
    three[0].tell(ValueError("here alone"), operations=4)
    assert not three[0].all_have_failed()
