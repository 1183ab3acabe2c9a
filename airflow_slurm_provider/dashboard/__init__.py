"""The dashboard: jobs, one job, a task and anomalies in a browser, for people and for Prometheus.

One FastAPI application (`app.create_app`). Airflow mounts it as a plugin, ``slurmctl
dashboard`` serves it alone; they differ in who may look (`auth.Guard`) and in which sites
there are (`dependencies.SitesSource`). Nothing here but `plugin` imports Airflow.
"""
