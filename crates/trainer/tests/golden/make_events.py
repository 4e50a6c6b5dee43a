"""Writes events.tfevents with TensorBoard's own protocol buffers and record writer, and reads it back with its event
accumulator, which does not need TensorFlow.

Run with tensorboard 2.21: python make_events.py. With a folder, it prints the scalars of the event files there, as JSON:
python make_events.py RUN/tensorboard
"""
import io, json, pathlib, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

HERE = pathlib.Path(__file__).parent
VALUES = {"loss/fake": [0.5, 0.0], "a/long tag " + 200 * "x": [-1.5, 3e38]}

def scalars(folder):
    accumulator = EventAccumulator(str(folder)).Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [[event.wall_time, event.step, event.value] for event in accumulator.Scalars(tag)] for tag in tags}

if len(sys.argv) > 1:
    print(json.dumps(scalars(sys.argv[1])))
    sys.exit()

buffer = io.BytesIO()
writer = RecordWriter(buffer)
writer.write(Event(wall_time=1.7e9, file_version="brain.Event:2").SerializeToString())
writer.write(Event(wall_time=1.7e9 + 0.25, step=1, session_log=SessionLog(status=SessionLog.START)).SerializeToString())
for index, step in enumerate([1, 40_000]):
    values = [Summary.Value(tag=tag, simple_value=values[index]) for tag, values in VALUES.items()]
    writer.write(Event(wall_time=1.7e9 + step, step=step, summary=Summary(value=values)).SerializeToString())
path = HERE / "events.tfevents"
path.write_bytes(buffer.getvalue())
found = scalars(path)
assert [event[1:] for event in found["loss/fake"]] == [[1, 0.5], [40_000, 0.0]]
print(len(buffer.getvalue()), "bytes")
