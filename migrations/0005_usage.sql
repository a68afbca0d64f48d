-- What keys are used for, and when last. By hand: the partitioning, the trigger that makes a key's row in key_uses, and
-- the rows of the keys that there are.
CREATE TABLE "key_uses" (
	"key_id" uuid PRIMARY KEY NOT NULL,
	"idle_since" timestamp (3) with time zone NOT NULL,
	"last_used" timestamp (3) with time zone,
	"last_used_ip" text,
	CONSTRAINT "key_uses_form" CHECK ("key_uses"."last_used" IS NULL OR "key_uses"."last_used" <= "key_uses"."idle_since")
);
--> statement-breakpoint
CREATE TABLE "usage" (
	"workspace_id" text NOT NULL,
	"key_id" uuid NOT NULL,
	"hour" timestamp (3) with time zone NOT NULL,
	"code" text NOT NULL,
	"count" bigint NOT NULL,
	CONSTRAINT "usage_workspace_id_key_id_hour_code_pk" PRIMARY KEY("workspace_id","key_id","hour","code"),
	CONSTRAINT "usage_count_form" CHECK ("usage"."count" > 0)
) PARTITION BY RANGE ("hour");
--> statement-breakpoint
CREATE TABLE "usage_durations" (
	"workspace_id" text NOT NULL,
	"key_id" uuid NOT NULL,
	"hour" timestamp (3) with time zone NOT NULL,
	"bucket" smallint NOT NULL,
	"count" bigint NOT NULL,
	"sum_us" bigint NOT NULL,
	CONSTRAINT "usage_durations_workspace_id_key_id_hour_bucket_pk" PRIMARY KEY("workspace_id","key_id","hour","bucket"),
	CONSTRAINT "usage_durations_form" CHECK ("usage_durations"."count" > 0 AND "usage_durations"."sum_us" >= 0)
) PARTITION BY RANGE ("hour");
--> statement-breakpoint
CREATE TABLE "usage_flushes" (
	"recorder" uuid PRIMARY KEY NOT NULL,
	"sequence" bigint NOT NULL,
	"at" timestamp (3) with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE INDEX "key_uses_idle_since" ON "key_uses" USING btree ("idle_since");--> statement-breakpoint
CREATE INDEX "usage_flushes_at" ON "usage_flushes" USING btree ("at");
--> statement-breakpoint

-- Takes what no other partition takes; those are made by upkeep (src/storage/partitions.ts).
CREATE TABLE "partitions"."usage_default" PARTITION OF "usage" DEFAULT;
--> statement-breakpoint
CREATE TABLE "partitions"."usage_durations_default" PARTITION OF "usage_durations" DEFAULT;
--> statement-breakpoint
-- In this order: a key that is made while the rows of the others are, gets its own.
CREATE FUNCTION "api_keys_unused"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.key_uses (key_id, idle_since) SELECT id, created_at FROM made ON CONFLICT DO NOTHING;
	RETURN NULL;
END
$$;
--> statement-breakpoint
CREATE TRIGGER "api_keys_unused" AFTER INSERT ON "api_keys" REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION "api_keys_unused"();
--> statement-breakpoint
INSERT INTO "key_uses" ("key_id", "idle_since") SELECT "id", "created_at" FROM "api_keys" ON CONFLICT DO NOTHING;
