# Both images: one static binary each, and nothing else. `make image` puts the binaries where this takes them from;
# docker, podman and buildah all accept it:
#
#   docker build --target driver --tag countersign-driver:VERSION target/images/context --file Dockerfile

FROM scratch AS driver
COPY countersign-driver /countersign-driver
ENTRYPOINT ["/countersign-driver"]

FROM scratch AS agent
COPY countersign-agent /countersign-agent
USER 65532:65532
ENTRYPOINT ["/countersign-agent"]
