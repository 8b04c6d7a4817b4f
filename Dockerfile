# docker build --build-arg EXTRA=tpu -t jaxrl_llm .      (or EXTRA=cuda; without it, for CPU)
FROM python:3.11-slim
ARG EXTRA=""
# Of the reward `code` and the tool `python`; a container that runs them is started with --privileged.
RUN apt-get update && apt-get install -y --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/*
WORKDIR /jaxrl_llm
COPY . .
RUN pip install --no-cache-dir -e ".[data${EXTRA:+,$EXTRA}]"
# jaxrl_llm is asked for by its module, so that the command is the same in every launcher.
ENTRYPOINT []
CMD ["python", "-m", "jaxrl_llm", "train"]
