# docker build --build-arg EXTRA=tpu -t jaxrl_llm .      (or EXTRA=cuda; without it, for CPU)
# docker run --gpus=all --volume=$PWD/runs:/runs jaxrl_llm python -m jaxrl_llm train --config=configs/gsm8k.py
FROM python:3.11-slim AS built
# Of what the extra `data` brings, pycosat has to be compiled.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/jaxrl_llm
ENV PATH=/opt/jaxrl_llm/bin:$PATH
WORKDIR /source
ARG EXTRA=""
# All that the package needs is a layer of its own, which changes with these two files alone.
COPY setup.cfg pyproject.toml ./
RUN mkdir jaxrl_llm && echo '__version__ = "0"' > jaxrl_llm/__init__.py && touch README.md LICENSE \
    && pip install --no-cache-dir ".[data${EXTRA:+,$EXTRA}]"
COPY README.md LICENSE ./
COPY configs configs
COPY jaxrl_llm jaxrl_llm
RUN pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11-slim
# Of the reward `code` and the tool `python`; a container that runs them is started with --privileged, as one with a TPU is.
RUN apt-get update && apt-get install -y --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/*
COPY --from=built /opt/jaxrl_llm /opt/jaxrl_llm
ENV PATH=/opt/jaxrl_llm/bin:$PATH NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Runs and compiled programs, of whatever user (docker run --user): mount a volume here to keep them.
ENV XDG_CACHE_HOME=/runs/.cache HOME=/runs
RUN mkdir --mode=1777 /runs
WORKDIR /runs
# jaxrl_llm is asked for by its module, so that the command is the same in every launcher.
ENTRYPOINT []
CMD ["python", "-m", "jaxrl_llm", "train"]
