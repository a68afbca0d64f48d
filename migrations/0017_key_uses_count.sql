-- A use of a key writes one row: what a key is allowed within the hour of its last use is counted beside that, and moved to
-- "usage" once the hour is over. Instances of an older release go on; until they are replaced, they do not tell of what
-- newer ones counted within that hour. Generated from src/storage/schema.ts. No row is written.
ALTER TABLE "key_uses" ADD COLUMN "used_hour" timestamp (3) with time zone DEFAULT '-infinity' NOT NULL;--> statement-breakpoint
ALTER TABLE "key_uses" ADD COLUMN "hour_count" bigint DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "key_uses" ADD COLUMN "moved_hour" timestamp (3) with time zone;--> statement-breakpoint
ALTER TABLE "key_uses" ADD COLUMN "moved_count" bigint;
