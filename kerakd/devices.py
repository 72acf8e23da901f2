"""The devices that a run trains on: strategies of tf.distribute by name, and what their processes agree on."""

import json
import os
import re
import socket
import sys
import urllib.parse

import tensorflow as tf

from kerakd.errors import BadInput, first_line

NAMES = ("none", "mirrored", "multi_worker", "tpu")


class Devices:
    """A strategy and this process's place among the workers.

    replicas: how many copies of a network learn at once, each from its part of a batch. distributed: whether the strategy is one in
    whose scope networks have to be made. worker: the number of this process among `workers`; the chief, number 0, alone writes a run's
    directory.
    """

    def __init__(self, strategy, worker=0, workers=1):
        self.strategy, self.worker, self.workers = strategy, worker, workers
        self.replicas = strategy.num_replicas_in_sync
        self.distributed = strategy is not tf.distribute.get_strategy()
        self._max = None

    @property
    def chief(self):
        return self.worker == 0

    def largest(self, number):
        """The largest of the numbers, int, that the workers give here; each has to ask, so that it is a barrier as well."""
        if self.workers == 1:
            return number
        if self._max is None:

            def gather(number):
                here = tf.one_hot(self.worker, self.workers, dtype=tf.int64) * number
                return tf.reduce_max(tf.distribute.get_replica_context().all_reduce("SUM", here) // (self.replicas // self.workers))

            self._max = tf.function(lambda number: self.strategy.experimental_local_results(self.strategy.run(gather, args=(number,)))[0])
        return int(self._max(tf.constant(number, tf.int64)))

    def split(self, make):
        """What `fit` takes of the batches of `make(worker, workers, replicas of a worker)`, a dataset of batches for one replica after the other."""
        if not self.distributed:
            return make(0, 1, 1)
        return self.strategy.distribute_datasets_from_function(lambda context: make(self.worker, self.workers, self.replicas // self.workers))

    def check_batch(self, size):
        """Raises: BadInput for a batch that can't be dealt out evenly."""
        if size % self.replicas:
            raise BadInput(f"--batch_size: expected a multiple of {self.replicas}, the replicas that share a batch, received {size}; take another")


def lost(error):
    """Whether an error of TensorFlow says that another worker is not there any more."""
    return isinstance(error, tf.errors.OpError) and "Collective ops is aborted" in error.message


def devices(name="none", count=0, address=""):
    """The Devices of a process; before anything else is asked of TensorFlow.

    Args:
        name: "none": one device, the first. "mirrored": those of this machine: its GPUs, or its CPU in so many parts.
            "multi_worker": every process that TF_CONFIG names, each with its GPUs or its CPU. "tpu": the TPU at `address`.
        count: of "mirrored", how many; 0 takes every GPU.
        address: of "tpu": its name or grpc:// address; "local" on a TPU VM.
    Raises: BadInput for more devices than there are, a TF_CONFIG that is missing or no such thing, a TPU that is not there.
    """
    if name not in NAMES:
        raise BadInput(f"--distribute: expected one of {', '.join(NAMES)}, received {name!r}")
    if count < 0:
        raise BadInput(f"--devices: expected 0 or more, received {count}")
    if count and name != "mirrored":
        raise BadInput(f"--devices: expected 0 with --distribute={name}, received {count}; it says how many devices --distribute=mirrored takes")
    if address and name != "tpu":
        raise BadInput(f"--tpu: expected none with --distribute={name}, received {address!r}; it is the address for --distribute=tpu")
    return {"none": _one, "mirrored": lambda: _mirrored(count), "multi_worker": _multi_worker, "tpu": lambda: _tpu(address)}[name]()


def _one():
    return Devices(tf.distribute.get_strategy())


def _mirrored(count):
    there = tf.config.list_physical_devices("GPU")
    if count > len(there) > 0:
        raise BadInput(f"--devices: expected at most {len(there)}, the GPUs of this machine, received {count}")
    if len(there) == 1 or count == 1 and there:
        return _one()
    if there:
        return Devices(tf.distribute.MirroredStrategy([f"GPU:{k}" for k in range(count or len(there))]))
    cores = os.cpu_count()
    if not 1 < count <= cores:
        raise BadInput(
            f"--devices: expected 2 to {cores}, parts of this machine's CPU, as it has no GPU, received {count or 'none'}; "
            "parts of one CPU are no faster than --distribute=none"
        )
    try:
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:  # it is in use already
        if len(tf.config.list_logical_devices("CPU")) < count:
            raise
    return Devices(tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(count)]))


_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'


def _multi_worker():
    text = os.environ.get("TF_CONFIG", "")
    try:
        given = json.loads(text)
        cluster, place = given["cluster"], (given["task"]["type"], given["task"]["index"])
        addresses = [one for kind in ("chief", "worker") for one in cluster.get(kind, [])]
        workers = [(kind, index) for kind in ("chief", "worker") for index in range(len(cluster.get(kind, [])))]  # a chief is the first of them
        sound = set(cluster) <= {"chief", "worker"} and place in workers and len(cluster.get("chief", [])) <= 1
        sound = sound and all(re.fullmatch(r".+:\d+", one) for one in addresses)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise BadInput(f"TF_CONFIG: expected workers and the place of this one, as {_EXAMPLE}, received {text!r}; set it in each worker's environment")
    if len(workers) == 1:
        raise BadInput("TF_CONFIG: expected two workers or more with --distribute=multi_worker, received one; take --distribute=mirrored or none")
    number = workers.index(place)
    print(f"kerakd: worker {number} of {len(workers)}, waiting for the others", file=sys.stderr, flush=True)
    try:
        return Devices(tf.distribute.MultiWorkerMirroredStrategy(), number, len(workers))
    except tf.errors.OpError as error:
        raise BadInput(f"TF_CONFIG: expected to serve at {addresses[number]} and to reach the others, received an error ({first_line(error)})") from error


def _tpu(address):
    try:
        if address.startswith("grpc://"):  # TensorFlow itself would wait for minutes
            where = urllib.parse.urlsplit(address)
            socket.create_connection((where.hostname, where.port or 8470), timeout=10).close()
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return Devices(tf.distribute.TPUStrategy(resolver))
    except (ValueError, RuntimeError, tf.errors.OpError, OSError) as error:
        raise BadInput(f"--tpu: expected the name or address of a TPU, or local on a TPU VM, received {address!r} ({first_line(error)})") from error
