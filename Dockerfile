# One image for every service of docker-compose.yml but PostgreSQL: API, workers, MLflow, dashboard.
FROM python:3.11.14-slim-trixie

# Where torch comes from; empty: where all else does, which on x86 is a build for CUDA of several GB.
# docs/how-to/deploy.md says what to give for a build for the CPU.
ARG TORCH_INDEX=

ENV GIT_PYTHON_REFRESH=quiet \
    MPLCONFIGDIR=/tmp/matplotlib \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

# A new volume takes over the owner of the folder that it is mounted on.
RUN groupadd --gid 10001 sweeps \
    && useradd --uid 10001 --gid sweeps --home-dir /tmp --no-create-home --shell /usr/sbin/nologin sweeps \
    && install --directory --owner sweeps --group sweeps /var/lib/sweeps /var/lib/mlflow \
    && install --directory /corpora

WORKDIR /src
COPY constraints.txt ./
RUN grep '^torch==' constraints.txt > torch.txt \
    && pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement torch.txt

COPY pyproject.toml README.md ./
COPY model model
COPY tracking tracking
COPY sweeps sweeps
RUN pip install --constraint constraints.txt '.[dashboard,mlflow-auth]'

COPY deploy /opt/deploy
WORKDIR /var/lib/sweeps
USER 10001:10001
ENTRYPOINT ["sh", "/opt/deploy/entrypoint.sh"]
CMD ["sweeps", "--help"]
