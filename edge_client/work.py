"""The trainer's queue: data sets to describe, then trainings; one task at a time, nothing decided here."""

import contextlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_client.config import DataSection, DeviceConfig
from edge_client.events import Answered, DataKnown, Train, TrainerDied
from edge_client.link import density
from edge_client.matching import undeclared
from edge_client.pull import Puller
from edge_client.store import Store
from edge_client.trainer import Gone, Said, Trainer
from edge_client.trainer_protocol import DataSource, Described, DescribeTask, Failed, TrainTask
from edge_client.wire.messages import DatasetInfo
from edge_client.wire.topics import Uid

DESCRIBE_TRIES = 3  # a child killed while it reads a data set gets two more chances


def source(data: DataSection) -> DataSource:
    """What the child is told of a data set."""
    return DataSource(data.path, data.holdout, data.gap, data.schema.target)


def known(name: str, data: DataSection, answer: Described | Failed) -> DataKnown:
    """What a description means: the declared data set, or why it cannot be used."""
    if isinstance(answer, Failed):
        return DataKnown(name, None, answer.message)
    wrong = undeclared(answer.data, data.schema)
    return DataKnown(name, None if wrong else DatasetInfo(name, data.schema, answer.n_samples), wrong)


@dataclass(frozen=True, slots=True)
class _Describe:
    name: str
    tries: int = 1


class Work:
    """Feeds the trainer and turns its words into events."""

    def __init__(self, config: DeviceConfig, store: Store, puller: Puller, trainer: Trainer) -> None:
        self._config = config
        self._store = store
        self._puller = puller
        self._trainer = trainer
        self._queue: deque[_Describe | Train] = deque(_Describe(name) for name in config.data)
        self._current: _Describe | Train | None = None
        self.link = store.link
        self.uid: Uid | None = None  # of the update being trained; storing it consumes the number

    def workspace(self, job: str) -> Path:
        """Directory of a job's model on this device."""
        return self._config.state_dir / "jobs" / job

    def measured(self, sent_bytes: int, seconds: float) -> None:
        """An update went up in so many seconds: the next one's density follows."""
        self.link = self.link.measured(sent_bytes, seconds)
        self._store.save_link(self.link)

    def train(self, train: Train) -> None:
        """Queue a training."""
        self._queue.append(train)

    def stop_training(self) -> None:
        """Give the training up, started or not."""
        self._queue = deque(item for item in self._queue if not isinstance(item, Train))
        if isinstance(self._current, Train):
            self._trainer.kill()
            self._current = None

    def pump(self) -> None:
        """Start the next task when the trainer is free."""
        if self._trainer.busy or not self._queue:
            return
        item = self._queue[0]
        if isinstance(item, _Describe):
            task: DescribeTask | TrainTask = DescribeTask(source(self._config.data[item.name]))
        else:
            task = self._train_task(item)
        self._trainer.submit(task)
        self._current = self._queue.popleft()  # only now: when storage fails it is begun again

    def take(self, word: Said | Gone, now: float) -> Answered | TrainerDied | DataKnown | None:
        """Turn a word of the trainer into an event; None when it is about a task that was given up."""
        item = self._current
        if not self._trainer.take(word, now) or item is None:
            return None
        if not self._trainer.busy:
            self._current = None
        if isinstance(item, Train):
            job, ask = item.offer.job, item.assignment.ask
            if isinstance(word, Gone):
                return TrainerDied(job, ask, word.reason)
            if isinstance(word.answer, Described):
                return TrainerDied(job, ask, "the trainer answered another question")
            return Answered(job, ask, word.answer)
        if isinstance(word, Said) and isinstance(word.answer, Described | Failed):
            return known(item.name, self._config.data[item.name], word.answer)
        if isinstance(word, Gone) and item.tries >= DESCRIBE_TRIES:
            return DataKnown(item.name, None, word.reason)
        self._queue.appendleft(_Describe(item.name, item.tries + 1))
        return None

    def _train_task(self, item: Train) -> TrainTask:
        offer, assignment = item.offer, item.assignment
        workspace = self.workspace(offer.job)
        workspace.mkdir(parents=True, exist_ok=True)
        self.uid = Uid(self._config.device.id, offer.job, self._store.epoch, self._store.next_seq)
        return TrainTask(
            job=offer.job,
            workspace=str(workspace),
            bundle_path=str(self._puller.path(assignment.bundle.digest)),
            model_paths=tuple(str(self._puller.path(digest)) for digest in item.frames),
            version=item.version,
            version_hash=item.version_hash,
            source=source(self._config.data[offer.dataset]),
            data=offer.data,
            plan=msgspec.structs.replace(assignment.plan, density=density(self.link.rate, assignment.plan)),
            uid=str(self.uid),
            residual=self._store.residual(offer.job),
        )

    def remove(self, job: str) -> None:
        """Delete a job's workspace: flat, made by the child."""
        remove_folder(self.workspace(job))

    def sweep(self, jobs: set[str]) -> None:
        """Delete workspaces of jobs the state does not know, left by a crash or a quarantined database."""
        folder = self._config.state_dir / "jobs"
        if folder.exists():
            for path in list(folder.iterdir()):
                if path.name not in jobs:
                    remove_folder(path)


def remove_folder(folder: Path) -> None:
    """Delete a flat folder; harmless when it is gone."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
