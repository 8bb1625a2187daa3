"""How much is read of what stands in Redis, where anybody may have written it. Bytes, unless said otherwise."""

from __future__ import annotations

#: A job's payload, decompressed; a job of the longest prompts stays far below.
MAX_PAYLOAD = 1 << 20
#: A job's meta: the result of 10,000 pictures is 5 MB.
MAX_META = 16 << 20
#: Any other field of a job.
MAX_FIELD = 1 << 16
#: A worker's announcement.
MAX_ANNOUNCEMENT = 1 << 20
#: An event of the stream: like a result.
MAX_EVENT = MAX_META
#: What a worker's ledger tells the hub at once: some hundred rows, with the logs of attempts that failed.
MAX_SHIPMENT = 32 << 20
#: A note of a picture that another worker may go on from; one of the longest addresses stays far below.
MAX_NOTE = 1 << 14
#: What is said of one picture: so many sentences, of so many letters each. So a result of 10,000 pictures stays below
#: `MAX_META` all the same.
MAX_REMARKS, MAX_REMARK = 4, 250
#: A message on a channel: a command, or a step that was done.
MAX_MESSAGE = 1 << 16
#: One reply of Redis as it comes to lie in memory; the connection is closed before more is read.
MAX_REPLY = 64 << 20
#: Entries of a list, set or sorted set that are looked at in one go.
MAX_MEMBERS = 10_000
