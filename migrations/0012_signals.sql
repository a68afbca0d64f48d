-- What signals are read from (docs/watching.md). Generated from src/storage/schema.ts; by hand: the triggers that keep
-- watched_keys, and the rows of the keys that there are.
CREATE TABLE "failed_authentications" (
	"window_start" timestamp (3) with time zone NOT NULL,
	"ip" text NOT NULL,
	"introspections" bigint NOT NULL,
	"calls" bigint NOT NULL,
	"is_burst" boolean NOT NULL,
	CONSTRAINT "failed_authentications_window_start_ip_pk" PRIMARY KEY("window_start","ip")
);
--> statement-breakpoint
CREATE TABLE "key_growths" (
	"hour" timestamp (3) with time zone NOT NULL,
	"key_id" uuid NOT NULL,
	"workspace_id" text NOT NULL,
	"busiest" bigint NOT NULL,
	CONSTRAINT "key_growths_hour_key_id_pk" PRIMARY KEY("hour","key_id")
);
--> statement-breakpoint
CREATE TABLE "watched_keys" (
	"key_id" uuid PRIMARY KEY NOT NULL,
	"workspace_id" text NOT NULL,
	"expires_at" timestamp (3) with time zone,
	"idle_day" timestamp (3) with time zone NOT NULL
);
--> statement-breakpoint
ALTER TABLE "request_logs" ADD COLUMN "ip_is_further" boolean DEFAULT false NOT NULL;--> statement-breakpoint
CREATE INDEX "failed_authentications_burst" ON "failed_authentications" USING btree ("window_start","ip") WHERE "failed_authentications"."is_burst";--> statement-breakpoint
CREATE INDEX "key_growths_workspace" ON "key_growths" USING btree ("workspace_id","hour","key_id");--> statement-breakpoint
CREATE INDEX "watched_keys_workspace" ON "watched_keys" USING btree ("workspace_id","key_id");--> statement-breakpoint
CREATE INDEX "watched_keys_idle" ON "watched_keys" USING btree ("idle_day","key_id");--> statement-breakpoint
CREATE INDEX "watched_keys_workspace_idle" ON "watched_keys" USING btree ("workspace_id","idle_day","key_id");--> statement-breakpoint
CREATE INDEX "watched_keys_expiry" ON "watched_keys" USING btree ("expires_at","key_id") WHERE "watched_keys"."expires_at" IS NOT NULL;--> statement-breakpoint
CREATE INDEX "watched_keys_workspace_expiry" ON "watched_keys" USING btree ("workspace_id","expires_at","key_id") WHERE "watched_keys"."expires_at" IS NOT NULL;--> statement-breakpoint
CREATE INDEX "request_logs_further" ON "request_logs" USING btree ("at","id") WHERE "request_logs"."ip_is_further";--> statement-breakpoint
CREATE INDEX "request_logs_workspace_further" ON "request_logs" USING btree ("workspace_id","at","id") WHERE "request_logs"."ip_is_further";
--> statement-breakpoint

-- In this order: a key that is made while the rows of the others are, gets its own.
CREATE OR REPLACE FUNCTION "api_keys_unused"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.key_uses (key_id, idle_since) SELECT id, created_at FROM made ON CONFLICT DO NOTHING;
	INSERT INTO public.watched_keys (key_id, workspace_id, expires_at, idle_day)
		SELECT id, workspace_id, expires_at, date_trunc('day', created_at, 'UTC') FROM made
		WHERE revoked_at IS NULL AND rotated_to IS NULL ON CONFLICT DO NOTHING;
	RETURN NULL;
END
$$;
--> statement-breakpoint
CREATE FUNCTION "api_keys_watched"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.revoked_at IS NOT NULL OR NEW.rotated_to IS NOT NULL THEN
		DELETE FROM public.watched_keys WHERE key_id = NEW.id;
	ELSE
		UPDATE public.watched_keys SET expires_at = NEW.expires_at WHERE key_id = NEW.id;
	END IF;
	RETURN NULL;
END
$$;
--> statement-breakpoint
-- For each row, so that its plan is of one key, whatever statement was the first of a session.
CREATE TRIGGER "api_keys_watched" AFTER UPDATE OF "revoked_at", "rotated_to", "expires_at" ON "api_keys" FOR EACH ROW
	WHEN ((OLD.revoked_at, OLD.rotated_to, OLD.expires_at) IS DISTINCT FROM (NEW.revoked_at, NEW.rotated_to, NEW.expires_at))
	EXECUTE FUNCTION "api_keys_watched"();
--> statement-breakpoint
INSERT INTO "watched_keys" ("key_id", "workspace_id", "expires_at", "idle_day")
	SELECT "id", "workspace_id", "expires_at", date_trunc('day', coalesce("idle_since", "created_at"), 'UTC')
	FROM "api_keys" LEFT JOIN "key_uses" ON "key_id" = "id"
	WHERE "revoked_at" IS NULL AND "rotated_to" IS NULL AND coalesce("expires_at", 'infinity') > now()
	ON CONFLICT DO NOTHING;
