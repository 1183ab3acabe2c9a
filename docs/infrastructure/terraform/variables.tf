variable "table" {
  description = "Name of the DynamoDB table: storage.table of the site file."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket: the bucket of storage.prefix."
  type        = string
}

variable "prefix" {
  description = "Key prefix in the bucket, without slashes at its ends: the rest of storage.prefix."
  type        = string
  default     = ""
}

variable "region" {
  description = "Region of the table, as in aws.region of the site file; * for any."
  type        = string
  default     = "*"
}

variable "create_bucket" {
  description = "Whether to create the bucket, with its settings and lifecycle rules."
  type        = bool
  default     = true
}

variable "point_in_time_recovery" {
  description = "Whether the table can be restored to any second of the last 35 days."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Whether the table is protected against deletion."
  type        = bool
  default     = true
}

variable "node_role_trusts" {
  description = "ARNs that may assume the role of the nodes, such as the coordinator's role. If empty, no role is created: attach the nodes' policy to the credentials of the nodes."
  type        = list(string)
  default     = []
}

variable "node_read" {
  description = "ARNs of other objects that handlers read: aws.node_read of the site file. A folder ends in /*, so that folders with a longer name are not included."
  type        = list(string)
  default     = []
}

variable "alerts_topic_arn" {
  description = "ARN of the SNS topic of alerts: alerts.sns_topic_arn of the site file."
  type        = string
  default     = ""
}

variable "name" {
  description = "Prefix of the names of policies and of the role."
  type        = string
  default     = "slurm-backfills"
}

variable "tags" {
  description = "Tags of all resources of this module."
  type        = map(string)
  default     = {}
}
