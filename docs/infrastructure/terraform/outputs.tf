output "coordinator_policy_arn" {
  description = "For the coordinator: the role of Airflow, or the users of slurmctl."
  value       = aws_iam_policy.coordinator.arn
}

output "node_policy_arn" {
  description = "For the credentials of the nodes, if they do not get separate ones for each job."
  value       = aws_iam_policy.node.arn
}

output "node_role_arn" {
  description = "For aws.node_role_arn of the site file; empty without node_role_trusts."
  value       = join("", aws_iam_role.node[*].arn)
}

output "storage" {
  description = "For storage of the site file."
  value = {
    table  = aws_dynamodb_table.backfills.name
    prefix = "s3://${var.bucket}${var.prefix == "" ? "" : "/"}${var.prefix}"
  }
}
