-- A use of a key writes no index any more, but the first of an hour, and its row's next version stands on the same page.
-- Rewrites the table, two or three seconds for a million keys, in which no key is made and no last use is read or
-- written. Generated from src/storage/schema.ts; by hand: the room on the pages. Instances of an older release go on, and
-- read the whole table for a list by unused_since.
ALTER TABLE "key_uses" SET (fillfactor = 50);--> statement-breakpoint
DROP INDEX "key_uses_idle_since";--> statement-breakpoint
ALTER TABLE "key_uses" ADD COLUMN "idle_hour" timestamp (3) with time zone GENERATED ALWAYS AS (date_trunc('hour', idle_since AT TIME ZONE 'UTC') AT TIME ZONE 'UTC') STORED NOT NULL;--> statement-breakpoint
CREATE INDEX "key_uses_idle_hour" ON "key_uses" USING btree ("idle_hour");
