# The policies that slurmctl doctor --iam prints, from templates: a test compares them.
locals {
  names = {
    bucket = var.bucket
    below  = local.below
    table  = var.table
    region = var.region
  }
  coordinator = jsondecode(templatefile("${path.module}/policies/coordinator.json.tftpl", local.names))
  node        = jsondecode(templatefile("${path.module}/policies/node.json.tftpl", local.names))
  has_role    = length(var.node_role_trusts) > 0
}

resource "aws_iam_policy" "coordinator" {
  name        = "${var.name}-coordinator"
  description = "Submit, watch, retry and publish backfills."
  tags        = var.tags
  policy = jsonencode({
    Version = local.coordinator.Version
    Statement = concat(
      local.coordinator.Statement,
      [for role in aws_iam_role.node : { Effect = "Allow", Action = "sts:AssumeRole", Resource = role.arn }],
      [for topic in compact([var.alerts_topic_arn]) : { Effect = "Allow", Action = "sns:Publish", Resource = topic }],
    )
  })
}

resource "aws_iam_policy" "node" {
  name        = "${var.name}-node"
  description = "Work on backfills; the workers of a job get it for this job only."
  tags        = var.tags
  policy = jsonencode({
    Version = local.node.Version
    Statement = concat(
      local.node.Statement,
      [for each in slice([var.node_read], 0, min(1, length(var.node_read))) : { Effect = "Allow", Action = "s3:GetObject", Resource = each }],
    )
  })
}

resource "aws_iam_role" "node" {
  count       = local.has_role ? 1 : 0
  name        = "${var.name}-node"
  description = "The coordinator assumes it for each job: aws.node_role_arn of the site file."
  tags        = var.tags
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Effect = "Allow", Action = "sts:AssumeRole", Principal = { AWS = var.node_role_trusts } },
    ]
  })
}

resource "aws_iam_role_policy_attachment" "node" {
  count      = local.has_role ? 1 : 0
  role       = aws_iam_role.node[0].name
  policy_arn = aws_iam_policy.node.arn
}
