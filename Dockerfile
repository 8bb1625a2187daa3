# A worker (or a producer) in a container. Macs run workers natively: Metal and Core ML are not to be had in a container.
FROM python:3.12-slim

RUN useradd --create-home renderkiln
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schema schema
COPY home home
COPY producer producer
COPY worker worker
# The CPU build of torch: a tenth of the size of the one with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --constraint constraints.txt torch \
 && pip install --no-cache-dir --constraint constraints.txt '.[worker]'

USER renderkiln
ENV RENDERKILN_DATA_DIR=/home/renderkiln/data RENDERKILN_OUT=/home/renderkiln/pictures
RUN mkdir -p "$RENDERKILN_DATA_DIR" "$RENDERKILN_OUT"
ENTRYPOINT ["renderkiln"]
CMD ["worker"]
