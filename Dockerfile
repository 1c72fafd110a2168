# vlchat serve in a container.
#
#   docker build --target cpu -t vlchat:cpu .         the chat page and the API on any machine
#   docker build --target cuda -t vlchat:cuda .       with an NVIDIA GPU; the driver and its container toolkit are the host's
#   docker run --rm -p 127.0.0.1:7860:7860 vlchat:cpu
#
# Nothing but the embedded model's weights is inside; others are downloaded to /models or mounted. compose.yaml runs it
# with a read-only file system and without privileges.
ARG PYTHON=3.12-slim-bookworm

# 1. An environment with what pyproject.toml names; vlchat itself comes last, so that a change of it costs seconds.
FROM python:${PYTHON} AS packages
RUN python -m pip install --no-cache-dir --disable-pip-version-check uv==0.13.9 && python -m venv --without-pip /opt/vlchat
ENV UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/opt/vlchat
WORKDIR /source
COPY pyproject.toml ./

FROM packages AS packages-cpu
RUN uv pip install --torch-backend cpu --requirements pyproject.toml --extra serve
COPY . .
RUN uv pip install --no-deps .

# On Linux the torch of PyPI is the CUDA build and brings the CUDA libraries. `train` brings bitsandbytes (--quantize).
FROM packages AS packages-cuda
RUN uv pip install --requirements pyproject.toml --extra serve --extra train
COPY . .
RUN uv pip install --no-deps .

# 2. What runs: Python, the environment, and a user without rights.
FROM python:${PYTHON} AS runtime
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin vlchat \
    && install --directory --owner vlchat --group vlchat /models /history
# Whatever is written goes to /tmp (uploads), /models (downloaded weights) and /history (the page's conversations).
ENV PATH=/opt/vlchat/bin:$PATH HOME=/tmp HF_HOME=/models GRADIO_TEMP_DIR=/tmp/gradio MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 XDG_DATA_HOME=/history
WORKDIR /models
USER 10001:10001
EXPOSE 7860
# Exec form, so that signals arrive; Python answers SIGINT as process 1 too, which ends the answers under way and stops.
STOPSIGNAL SIGINT
HEALTHCHECK --interval=30s --timeout=5s --start-period=5m --retries=3 CMD ["python", "-c", \
    "from http.client import HTTPConnection as C; c = C('127.0.0.1', 7860, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["vlchat"]
CMD ["serve", "--host", "0.0.0.0"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/vlchat /opt/vlchat

# The last one is built where no target is named.
FROM runtime AS cpu
COPY --from=packages-cpu /opt/vlchat /opt/vlchat
