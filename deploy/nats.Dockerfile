# The official image has no /data: a fresh volume there would be root's, and an unprivileged server could not write it.
ARG NATS_IMAGE=nats:2.15.1-alpine
FROM ${NATS_IMAGE}
RUN mkdir -p /data && chown 10001:10001 /data
