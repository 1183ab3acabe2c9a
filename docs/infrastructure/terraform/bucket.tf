locals {
  below = var.prefix == "" ? "" : "${var.prefix}/"
  rules = var.prefix == "" ? "slurm-backfills" : "slurm-backfills-${replace(var.prefix, "/", "-")}"
}

resource "aws_s3_bucket" "backfills" {
  count  = var.create_bucket ? 1 : 0
  bucket = var.bucket
  tags   = var.tags
}

resource "aws_s3_bucket_public_access_block" "backfills" {
  count                   = var.create_bucket ? 1 : 0
  bucket                  = aws_s3_bucket.backfills[0].id
  block_public_acls       = true
  ignore_public_acls      = true
  block_public_policy     = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "backfills" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.backfills[0].id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

# An existing bucket may have other rules, and this resource would replace them. For such a bucket
# use slurmctl bootstrap --update, which adds these rules to the existing ones.
resource "aws_s3_bucket_lifecycle_configuration" "backfills" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.backfills[0].id

  rule {
    id     = "${local.rules}-uploads"
    status = "Enabled"

    filter {
      prefix = local.below
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  rule {
    id     = "${local.rules}-versions"
    status = "Enabled"

    filter {
      prefix = local.below
    }

    noncurrent_version_expiration {
      noncurrent_days = 30
    }
  }

  rule {
    id     = "${local.rules}-probes"
    status = "Enabled"

    filter {
      prefix = "${local.below}jobs/doctor.probe/"
    }

    expiration {
      days = 1
    }
  }
}
