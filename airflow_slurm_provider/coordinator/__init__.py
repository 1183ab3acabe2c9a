"""Plan, submit, watch, retry, aggregate: what every face of the project calls. No Airflow."""
