# In place of the images of docker-compose.yaml that come from a registry; see podman.yaml.
FROM localhost/debian:bookworm AS debian
ENV DEBIAN_FRONTEND=noninteractive

FROM debian AS mariadb
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends mariadb-server \
    && rm -rf /var/lib/apt/lists/* /var/lib/mysql/*
COPY --chmod=755 tests/compose/mariadb.sh /usr/local/bin/
# The official image's script of this name.
RUN printf '#!/bin/sh\nexec mariadb-admin ping\n' > /usr/local/bin/healthcheck.sh \
    && chmod 755 /usr/local/bin/healthcheck.sh \
    && install -d -o mysql -g mysql /run/mysqld /var/lib/mysql
USER mysql
ENTRYPOINT ["mariadb.sh"]

FROM debian AS postgres
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/lib/postgresql/15/bin:$PATH
COPY --chmod=755 tests/compose/postgres.sh /usr/local/bin/
RUN install -d -o postgres -m 700 /var/lib/postgresql/data
USER postgres
ENTRYPOINT ["postgres.sh"]

FROM debian AS python
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends ca-certificates curl python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH

FROM python AS dynamodb
RUN pip install --no-cache-dir "moto[server,dynamodb]>=5.1" && useradd --uid 1000 dynamodblocal
USER dynamodblocal

FROM python AS airflow
ENV AIRFLOW_VERSION=3.3.2 AIRFLOW_HOME=/opt/airflow
RUN pip install --no-cache-dir "apache-airflow==$AIRFLOW_VERSION" psycopg2-binary asyncpg \
    && useradd --uid 50000 --gid 0 --home-dir /opt/airflow --create-home airflow \
    && mkdir -p /opt/airflow/logs && chown -R 50000:0 /opt/airflow /venv
USER 50000
