-- What a workspace's plan allows, and whether it is disabled. Generated; a row that is there already has the defaults.
ALTER TABLE "workspaces" ADD COLUMN "name" text;--> statement-breakpoint
ALTER TABLE "workspaces" ADD COLUMN "max_active_keys" integer;--> statement-breakpoint
ALTER TABLE "workspaces" ADD COLUMN "allowed_scopes" text[];--> statement-breakpoint
ALTER TABLE "workspaces" ADD COLUMN "max_key_lifetime_days" integer;--> statement-breakpoint
ALTER TABLE "workspaces" ADD COLUMN "rate_limit" integer;--> statement-breakpoint
ALTER TABLE "workspaces" ADD COLUMN "rate_limit_window_seconds" integer;--> statement-breakpoint
ALTER TABLE "workspaces" ADD COLUMN "disabled" boolean DEFAULT false NOT NULL;--> statement-breakpoint
ALTER TABLE "workspaces" ADD COLUMN "created_at" timestamp (3) with time zone;--> statement-breakpoint
ALTER TABLE "workspaces" ADD COLUMN "updated_at" timestamp (3) with time zone;--> statement-breakpoint
ALTER TABLE "workspaces" ADD CONSTRAINT "workspaces_name_length" CHECK (char_length("workspaces"."name") BETWEEN 1 AND 120);--> statement-breakpoint
ALTER TABLE "workspaces" ADD CONSTRAINT "workspaces_limits_form" CHECK ("workspaces"."max_active_keys" >= 0 AND "workspaces"."max_key_lifetime_days" >= 1 AND cardinality("workspaces"."allowed_scopes") >= 1 AND array_position("workspaces"."allowed_scopes", NULL) IS NULL);--> statement-breakpoint
ALTER TABLE "workspaces" ADD CONSTRAINT "workspaces_rate_limit_form" CHECK (num_nulls("workspaces"."rate_limit", "workspaces"."rate_limit_window_seconds") IN (0, 2) AND "workspaces"."rate_limit" >= 1 AND "workspaces"."rate_limit_window_seconds" BETWEEN 1 AND 2678400);--> statement-breakpoint
ALTER TABLE "workspaces" ADD CONSTRAINT "workspaces_system_has_defaults" CHECK ("workspaces"."id" <> 'system' OR (NOT "workspaces"."disabled" AND "workspaces"."updated_at" IS NULL));