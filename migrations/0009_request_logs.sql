-- The request log, and from where keys were used. Generated from src/storage/schema.ts; by hand: the partitioning.
CREATE TABLE "key_addresses" (
	"key_id" uuid NOT NULL,
	"ip" text NOT NULL,
	"first_seen_at" timestamp (3) with time zone NOT NULL,
	"seen_on" date NOT NULL,
	CONSTRAINT "key_addresses_key_id_ip_pk" PRIMARY KEY("key_id","ip")
);
--> statement-breakpoint
CREATE TABLE "request_logs" (
	"id" uuid PRIMARY KEY NOT NULL,
	"at" timestamp (3) with time zone NOT NULL,
	"key_id" uuid,
	"workspace_id" text,
	"code" text NOT NULL,
	"status" smallint,
	"duration_ms" double precision,
	"ip" text,
	"ip_first_seen" boolean DEFAULT false NOT NULL,
	"method" text,
	"path" text,
	"caller_key_id" uuid,
	"request_id" text
) PARTITION BY RANGE ("id");
--> statement-breakpoint
CREATE INDEX "key_addresses_seen_on" ON "key_addresses" USING btree ("seen_on");--> statement-breakpoint
CREATE INDEX "request_logs_workspace" ON "request_logs" USING btree ("workspace_id","at","id");--> statement-breakpoint
CREATE INDEX "request_logs_workspace_code" ON "request_logs" USING btree ("workspace_id","code","at","id");--> statement-breakpoint
CREATE INDEX "request_logs_workspace_ip" ON "request_logs" USING btree ("workspace_id","ip","code","at","id");--> statement-breakpoint
CREATE INDEX "request_logs_key" ON "request_logs" USING btree ("key_id","at","id");--> statement-breakpoint
CREATE INDEX "request_logs_key_code" ON "request_logs" USING btree ("key_id","code","at","id");--> statement-breakpoint
CREATE INDEX "request_logs_key_ip" ON "request_logs" USING btree ("key_id","ip","code","at","id");--> statement-breakpoint
CREATE INDEX "request_logs_code" ON "request_logs" USING btree ("code","at","id");--> statement-breakpoint
CREATE INDEX "request_logs_ip" ON "request_logs" USING btree ("ip","code","at","id");
--> statement-breakpoint
-- Takes what no other partition takes; those are made by upkeep (src/storage/partitions.ts).
CREATE TABLE "partitions"."request_logs_default" PARTITION OF "request_logs" DEFAULT;
