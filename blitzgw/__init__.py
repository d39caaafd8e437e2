"""An LLM serving gateway that scales live.

cli/        click: run, scale, inspect, simulate, models, …        the face for operators
node.py     composition root: builds, joins, starts and stops everything      front.py  its HTTP
cluster.py  what a node publishes and sees    following.py  what follows from that
routes.py   which instances its router may choose from
network.py  gossip, links, both ends of requests          definitions.py  models, own and others'
device.py   a worker, its scheduler, its instances        placement.py  what a model takes there
scaler.py   scale operations, host copies: joins the deciders of scaling/ with links and devices
selfscaling.py  how many instances: demands.py ──► autoscaling.py, orderdesk.py ──► operations
pairings.py instances of two nodes joined over links and roads          helping.py  which are wanted
api/        OpenAI over HTTP: routes, validation, SSE, text, metrics
worker/     the child process that drives one device, and its handle in the parent
router/     which instance serves a request; token log and failover
scheduler/  continuous batching and KV blocks: a decider and its thin shell
scaling/    numbers of instances (autoscaler.py, policy.py), plans, operations, claims, host copies:
            deciders
gossip/     membership, directory, peer links: deciders and their shells
weights/    checkpoint formats → blobs, manifests, stores, host copies; the model cache
transport/  bytes between workers: edges over TCP, NCCL or memory
engine/     torch decoder over any span of layers, sampling; the paced device
sim/        a cluster in virtual time, running the production deciders
crypto/     keys, handshake, records, datagrams           wire.py  framing and codec
configfile/ TOML and options → config.py, all mistakes at once
core/       the vocabulary that all of them speak         errors.py  the one tree of errors
"""
