-- Audit events by month, so that old ones go by dropping a table. By hand but for the last five indexes: the table
-- that there is becomes the first partition as it stands, with all that it holds, and a partitioned table takes its
-- name. Instances of an older release go on appending to it: each column is where it was, and the new one may be null.
CREATE SCHEMA IF NOT EXISTS "partitions";
--> statement-breakpoint
DROP INDEX "audit_events_workspace";
--> statement-breakpoint
DROP INDEX "audit_events_key";
--> statement-breakpoint
ALTER TABLE "audit_events" ALTER COLUMN "workspace_id" DROP NOT NULL;
--> statement-breakpoint
ALTER TABLE "audit_events" ADD COLUMN "target" text;
--> statement-breakpoint
ALTER TABLE "audit_events" RENAME TO "audit_events_first";
--> statement-breakpoint
ALTER INDEX "audit_events_pkey" RENAME TO "audit_events_first_pkey";
--> statement-breakpoint
ALTER TABLE "audit_events_first" SET SCHEMA "partitions";
--> statement-breakpoint
-- By id: a UUIDv7, whose first 48 bits are the time in milliseconds. So the id stays the primary key.
CREATE TABLE "audit_events" (LIKE "partitions"."audit_events_first" INCLUDING DEFAULTS, PRIMARY KEY ("id")) PARTITION BY RANGE ("id");
--> statement-breakpoint
CREATE INDEX "audit_events_workspace_at" ON "audit_events" USING btree ("workspace_id","at","id");--> statement-breakpoint
CREATE INDEX "audit_events_workspace_action_at" ON "audit_events" USING btree ("workspace_id","action","at","id");--> statement-breakpoint
CREATE INDEX "audit_events_key_at" ON "audit_events" USING btree ("key_id","at","id");--> statement-breakpoint
CREATE INDEX "audit_events_actor_at" ON "audit_events" USING btree ("actor_key_id","at","id");--> statement-breakpoint
CREATE INDEX "audit_events_action_at" ON "audit_events" USING btree ("action","at","id");--> statement-breakpoint

-- All until the end of this month. Later partitions are made by upkeep (src/storage/partitions.ts).
DO $$
DECLARE
	next_month timestamptz;
	milliseconds text;
BEGIN
	-- Whatever the time zone of this session: the first day of the next month, at midnight UTC.
	next_month := (date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC';
	milliseconds := lpad(to_hex((extract(epoch FROM next_month) * 1000)::bigint), 12, '0');
	EXECUTE format(
		'ALTER TABLE public.audit_events ATTACH PARTITION partitions.audit_events_first FOR VALUES FROM (MINVALUE) TO (%L)',
		left(milliseconds, 8) || '-' || right(milliseconds, 4) || '-7000-8000-000000000000'
	);
END
$$;
--> statement-breakpoint
-- Takes what no other partition takes, so that no change of a key ever fails for want of one.
CREATE TABLE "partitions"."audit_events_default" PARTITION OF "audit_events" DEFAULT;
--> statement-breakpoint

-- What names the table fires the trigger of statements. What names a partition fires the trigger of rows, which each
-- partition inherits; TRUNCATE has no such, so that each partition gets one of its own. ALWAYS: also in a session that
-- replays a replica's changes.
CREATE TRIGGER "audit_events_append_only" BEFORE UPDATE OR DELETE OR TRUNCATE ON "audit_events" FOR EACH STATEMENT EXECUTE FUNCTION "refuse_change"();
--> statement-breakpoint
CREATE TRIGGER "audit_events_rows_append_only" BEFORE UPDATE OR DELETE ON "audit_events" FOR EACH ROW EXECUTE FUNCTION "refuse_change"();
--> statement-breakpoint
CREATE TRIGGER "audit_events_keep" BEFORE TRUNCATE ON "partitions"."audit_events_default" FOR EACH STATEMENT EXECUTE FUNCTION "refuse_change"();
--> statement-breakpoint
ALTER TABLE "audit_events" ENABLE ALWAYS TRIGGER "audit_events_append_only";
--> statement-breakpoint
ALTER TABLE "audit_events" ENABLE ALWAYS TRIGGER "audit_events_rows_append_only";
--> statement-breakpoint
ALTER TABLE "partitions"."audit_events_first" ENABLE ALWAYS TRIGGER "audit_events_append_only";
--> statement-breakpoint
ALTER TABLE "partitions"."audit_events_default" ENABLE ALWAYS TRIGGER "audit_events_keep";
