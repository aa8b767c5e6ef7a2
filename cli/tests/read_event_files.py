#!/usr/bin/env python3
"""TensorBoard's own reading of a folder of event files: `read_event_files.py FOLDER` prints each tag's steps and values."""
import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
print(json.dumps({tag: [[point.step, point.value] for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
