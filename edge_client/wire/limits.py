"""Limits of the wire (invariant I6). A decoder checks these before it allocates."""

ID_LENGTH_MAX = 64  # characters of a device, job, cohort or data-set name: fits an X.509 common name
JSON_BYTES_MAX = 64 * 1024  # one control message; the largest real one (info) is under 4 KiB
FRAME_BYTES_MAX = 64 * 1024 * 1024  # one update or blob: a dense fp32 model of 16 M parameters
CHUNK_BYTES = 64 * 1024  # payload of one chunk: below AWS 128 kB, Azure 256 kB and NATS 1 MB packet limits
CHUNK_COUNT_MAX = FRAME_BYTES_MAX // 1024  # chunks of one message when a broker allows only 1 KiB
TENSOR_COUNT_MAX = 4096  # tensors of one model; a 100-layer network has about 600
PARAMETER_COUNT_MAX = 16 * 1024 * 1024  # parameters of one model: 64 MB of fp32, the most a 1 GB Pi can train
SAMPLES_MAX = (
    65535  # n_samples is a u16; more samples than this weigh the same, so one device cannot dominate
)
PACKET_BYTES_ASSUMED = (
    128 * 1024
)  # of a broker that states no limit (MQTT 3.1.1, rumqttd): the least of the above
PACKET_OVERHEAD_BYTES = 1024  # topic, properties and fixed header of one PUBLISH, rounded up
BLOB_WINDOW_MAX = 16  # chunks one device may ask for at once: 0.22 s for 8 MiB on loopback, 1.6 s with one
FANOUT_BYTES_MAX = (
    4 * 1024 * 1024
)  # of one delta the broker fans out: a device holds it in memory while it comes
HALF_MAX = 65504.0  # the largest finite float16: a residual or statistic saturates there
FRACTION_BITS = 24  # of the fold's fixed point: every float16 is a whole multiple of 2**-24
