# DynamoDB Local with a folder of its ordinary user.
FROM docker.io/amazon/dynamodb-local:3.3.1@sha256:ff89bd48ff32cd8d9be5fee8873b65b8854dc408f1afe881be6eb00247bc0dab
USER root
# A new volume takes the folder's owner.
RUN mkdir -m 700 /data && chown dynamodblocal /data
USER dynamodblocal
