"""The parent's side of the trainer child: answers, deaths, limits."""

import os
import queue
import resource
import signal
import sys
from pathlib import Path

import pytest

from edge_client.config import TrainerSection
from edge_client.trainer import Gone, Said, Trainer
from edge_client.trainer_protocol import DataSource, Described, DescribeTask

ROOT = Path(__file__).parents[3]
WAIT_S = 15.0
TASK = DescribeTask(DataSource("nowhere.npz"))
CHILD = """
import os, sys, resource
sys.path.insert(0, {root!r})
from edge_client.trainer_protocol import Described, receive_task, send
from edge_client.wire.messages import DataSchema
while (task := receive_task(sys.stdin.buffer)) is not None:
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    {then}
    send(sys.stdout.buffer, Described(DataSchema((os.getpid(), os.nice(0)), limit), 1))
"""


@pytest.fixture
def start():
    """Make trainers over a small child whose `then` line misbehaves; all are killed at the end."""
    made = []

    def make(then="pass", **settings):
        words = queue.SimpleQueue()
        code = CHILD.format(root=str(ROOT), then=then)
        trainer = Trainer(TrainerSection(**settings), words.put, (sys.executable, "-c", code))
        made.append(trainer)
        return trainer, words

    yield make
    for trainer in made:
        trainer.kill()


def test_child_answers_is_niced_and_limited_and_kept(start):
    """One child serves all tasks, at the niceness and memory limit of the configuration."""
    trainer, words = start(nice=7, memory_max_mb=300)
    pids = set()
    for _ in range(2):
        token = trainer.submit(TASK)
        word = words.get(timeout=WAIT_S)
        assert trainer.take(word, 0.0)
        assert isinstance(word, Said)
        assert word.token is token
        assert isinstance(word.answer, Described)
        pid, nice = word.answer.data.shape
        assert (nice, word.answer.data.n_classes) == (7, 300 * 1024 * 1024)
        pids.add(pid)
    assert len(pids) == 1
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 300 * 1024 * 1024


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ("os.kill(os.getpid(), 9)", "trainer ended by SIGKILL (killed, perhaps for memory)"),
        ("os._exit(3)", "trainer ended with code 3"),
        ("os.write(1, b'\\xff' * 8)", "trainer: "),
    ],
)
def test_death_is_told_with_its_cause_and_the_next_task_gets_a_new_child(start, then, why):
    """A child that is killed, exits or talks nonsense is named as such; the trainer can be used again."""
    trainer, words = start(then)
    for _ in range(2):
        trainer.submit(TASK)
        word = words.get(timeout=WAIT_S)
        assert trainer.take(word, 0.0)
        assert isinstance(word, Gone)
        assert word.reason.startswith(why)


def test_killed_task_is_not_heard_of(start):
    """After `kill` nothing of the old task is taken, and the child is gone."""
    trainer, words = start("import time; time.sleep(100)")
    trainer.submit(TASK)
    trainer.kill()
    assert not trainer.busy
    assert not trainer.take(words.get(timeout=WAIT_S), 0.0)


def test_idle_child_is_stopped(start):
    """A child without work for `idle_s` gives its memory back."""
    trainer, words = start(idle_s=5.0)
    trainer.submit(TASK)
    word = words.get(timeout=WAIT_S)
    trainer.take(word, 100.0)
    assert trainer.wake == 105.0
    trainer.tick(104.0)
    os.kill(word.answer.data.shape[0], 0)
    trainer.tick(105.0)
    with pytest.raises(ProcessLookupError):
        os.kill(word.answer.data.shape[0], signal.SIG_DFL)
