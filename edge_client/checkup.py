"""`fedfleet device check`: try what the daemon will need, and say what is wrong with each."""

import queue
import random
import time

from edge_client.config import ConfigError, DeviceConfig
from edge_client.finding import Finding, room_for
from edge_client.trainer import Gone, Said, Trainer
from edge_client.trainer_protocol import Described, DescribeTask, Failed
from edge_client.transport import Down, Identity, Transport, Up, Word
from edge_client.wire import chunks
from edge_client.wire.errors import LocalWireError
from edge_client.wire.messages import DatasetInfo
from edge_client.work import known, source

DESCRIBE_S = 120.0  # to load numpy and read a data set on a slow card
NONE_LENT = "none is lent, so no job will be given to this device; add a section [data.<name>]"
CONNECT_S = 30.0  # three attempts


def examine(config: DeviceConfig) -> list[Finding]:
    """Check the state's directory, every data set and the broker; the file was checked when it was loaded."""
    return [room_for(config.state_dir), *_examine_data(config), _examine_broker(config)]


def _examine_data(config: DeviceConfig) -> list[Finding]:
    if not config.data:
        return [Finding("data sets", ok=False, detail=NONE_LENT)]
    words: queue.SimpleQueue[Said | Gone] = queue.SimpleQueue()
    trainer = Trainer(config.trainer, words.put)
    findings = []
    try:
        for name, data in config.data.items():
            trainer.submit(DescribeTask(source(data)))
            what = f"data set {name}"
            try:
                word = words.get(timeout=DESCRIBE_S)
            except queue.Empty:
                trainer.kill()
                findings.append(Finding(what, ok=False, detail=f"not described within {DESCRIBE_S:g} s"))
                continue
            trainer.take(word, time.monotonic())
            if isinstance(word, Said) and isinstance(word.answer, Described | Failed):
                seen = known(name, data, word.answer)
                ok = seen.info is not None
                detail = _described(seen.info) if seen.info is not None else f"{data.path}: {seen.reason}"
                findings.append(Finding(what, ok=ok, detail=detail))
            else:
                reason = word.reason if isinstance(word, Gone) else "the trainer answered another question"
                findings.append(Finding(what, ok=False, detail=reason))
    finally:
        trainer.kill()
    return findings


def _described(info: DatasetInfo) -> str:
    return f"{info.n_samples} samples of {list(info.data.shape)} with {info.data.labelling}"


def _without_address(reason: str, what: str) -> str:
    """Why there is no connection, said once, and what to look at when nothing that speaks MQTT answered."""
    reason = reason.removeprefix(f"{what.removeprefix('broker ')}: ")
    return reason if reason.startswith("refused") else f"{reason}; is an MQTT broker running there?"


def _examine_broker(config: DeviceConfig) -> Finding:
    """Connect under another client id, so that a running daemon is not thrown off."""
    what = f"broker {config.broker.host}:{config.broker.port}"
    try:
        password = config.password()
    except ConfigError as error:
        return Finding(what, ok=False, detail=str(error))
    words: queue.SimpleQueue[Word] = queue.SimpleQueue()
    identity = Identity(f"{config.device.id}-check", persistent=False)
    transport = Transport(
        config.broker,
        password=password,
        identity=identity,
        put=words.put,
        waiting=words.qsize,
        rng=random.Random(0),  # noqa: S311 - jitter, not a secret
    )
    reason = "no answer"
    deadline = time.monotonic() + CONNECT_S
    refusals = 0
    try:
        while refusals < 2 and time.monotonic() < deadline:
            transport.tick(time.monotonic())
            try:
                word = words.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(word, Up) and transport.take(word, time.monotonic()):
                size = chunks.chunk_bytes(word.packet_bytes_max)
                return Finding(what, ok=True, detail=f"MQTT {transport.protocol}, chunks of {size} B")
            if isinstance(word, Down) and transport.take(word, time.monotonic()):
                reason, refusals = _without_address(word.reason, what), refusals + 1
    except LocalWireError as error:
        reason = str(error)
    finally:
        transport.stop()
    return Finding(what, ok=False, detail=reason)
