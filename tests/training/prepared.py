"""Data sets on disk in the form of tensorflow-datasets."""

import json

import numpy as np
import tensorflow as tf

SHAPES = {"cifar10": ("3.0.2", (32, 32, 3)), "mnist": ("3.0.1", (28, 28, 1))}


def numbered(count, shape):
    """Images that differ: each one's number is in its first two bytes."""
    images = np.full((count, *shape), 7, "uint8")
    images.reshape(count, -1)[:, 0] = np.arange(count) % 256
    images.reshape(count, -1)[:, 1] = np.arange(count) // 256
    return images


def prepare(folder, name, train, test):
    """A prepared set in the form of tensorflow-datasets, with these labels."""
    version, shape = SHAPES[name]
    home = folder / name / version
    home.mkdir(parents=True)
    splits = []
    for split, labels in {"train": train, "test": test}.items():
        path = home / f"{name}-{split}.tfrecord-00000-of-00001"
        pngs = [tf.io.encode_png(image) for image in numbered(len(labels), shape)]
        write(
            path,
            [
                record(png.numpy(), label)
                for png, label in zip(pngs, labels, strict=True)
            ],
        )
        shards = {"numBytes": "1", "shardLengths": [str(len(labels))], "name": split}
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"filepathTemplate": template, **shards})
    info = {"name": name, "version": version, "fileFormat": "tfrecord"}
    (home / "dataset_info.json").write_text(json.dumps({**info, "splits": splits}))
    return home


def write(path, records):
    writer = tf.io.TFRecordWriter(str(path))
    for content in records:
        writer.write(content)
    writer.close()


def record(png, label):
    feature = {
        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"0"])),
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[png])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString()
