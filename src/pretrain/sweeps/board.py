"""A sweep in TensorBoard: what its members differ in, for the HParams tab.

`tensorboard --logdir runs/isoflop_tiny` then shows every member's curves, and a table of all members
by hyper-parameters and losses. Written are the plug-in's own records: the experiment in the sweep's
directory, and in each member's tensorboard/ the start and the end of its session.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.config import leaves
from pretrain.sweeps.cost import cost
from pretrain.sweeps.member import Member
from pretrain.writers import Appended

METRICS = {"eval/loss": "held-out loss", "train/loss": "training loss"}
Value = float | str | bool


def hyperparameters(members: Sequence[Member]) -> dict[str, dict[str, Value]]:
    """By member and dotted field, what differs among them; and parameters, tokens, FLOPs of each."""
    found = {member.name: leaves(member.run) for member in members}
    names = list(dict.fromkeys(name for fields in found.values() for name in fields))
    differing = [
        name for name in names if len({repr(fields.get(name)) for fields in found.values()}) > 1
    ]
    table = {}
    for member in members:
        spent, fields = cost(member.run), found[member.name]
        counts = {
            "parameters": spent.parameters.total,
            "tokens": spent.tokens,
            "FLOPs": spent.flops,
        }
        own = {name: plain(fields[name]) for name in differing if name in fields}
        table[member.name] = own | {name: float(value) for name, value in counts.items()}
    return table


def plain(value: Any) -> Value:
    """A field's value as the plug-in can hold it."""
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, int | float) else str(value)


def write_experiment(directory: Path, members: Sequence[Member]) -> None:
    """Write what the columns of the table are, unless an earlier start has."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    if list(directory.glob("events.out.tfevents.*")):
        return
    table = hyperparameters(members)
    columns = dict.fromkeys(name for row in table.values() for name in row)
    infos = []
    for name in columns:
        values = {row[name] for row in table.values() if name in row}
        info = api_pb2.HParamInfo(name=name, type=kind(values))
        ordered = sorted(values, key=lambda v: (isinstance(v, str), v))
        for value in ordered:
            info.domain_discrete.values.add(**field(value))
        infos.append(info)
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
        for tag, name in METRICS.items()
    ]
    data = plugin_data_pb2.HParamsPluginData(
        experiment=api_pb2.Experiment(
            hparam_infos=infos, metric_infos=metrics, time_created_secs=time.time()
        )
    )
    directory.mkdir(parents=True, exist_ok=True)
    write(directory / f"events.out.tfevents.{time.time_ns()}", metadata.EXPERIMENT_TAG, data)


def write_start(directory: Path, name: str, values: Mapping[str, Value]) -> None:
    """Write that the session of a member begins, with its hyper-parameters."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo(group_name=name, start_time_secs=time.time())
    for key, value in values.items():
        for name_of_field, held in field(value).items():
            setattr(info.hparams[key], name_of_field, held)
    # A name that sorts before those of the run's own files: TensorBoard reads them in order.
    file = directory / "events.out.tfevents.0.start"
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        data = plugin_data_pb2.HParamsPluginData(session_start_info=info)
        write(file, metadata.SESSION_START_INFO_TAG, data)


def write_end(directory: Path, finished: bool) -> None:
    """Write that the session of a member has ended, and whether well."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_SUCCESS if finished else api_pb2.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
    write(
        directory / f"events.out.tfevents.{time.time_ns()}.end", metadata.SESSION_END_INFO_TAG, data
    )


def write(file: Path, tag: str, data: Any) -> None:
    """One record of the plug-in in an event file of its own."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.summary.writer.record_writer import RecordWriter

    summary = Summary()
    summary.value.add(tag=tag, metadata=metadata.create_summary_metadata(data))
    appended = Appended(file)
    try:
        for event in (Event(file_version="brain.Event:2"), Event(summary=summary)):
            event.wall_time = time.time()
            RecordWriter(appended).write(event.SerializeToString())
    finally:
        appended.close()


def kind(values: set[Value]) -> Any:
    """The plug-in's type for a column of these values."""
    from tensorboard.plugins.hparams import api_pb2

    kinds = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
    found = {type(value) for value in values}
    return kinds.get(found.pop(), api_pb2.DATA_TYPE_FLOAT64) if len(found) == 1 else 0


def field(value: Value) -> dict[str, Value]:
    """A value as the one field of a protobuf `Value`."""
    names = {bool: "bool_value", str: "string_value"}
    return {names.get(type(value), "number_value"): value}
