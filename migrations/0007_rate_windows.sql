CREATE TABLE "rate_windows" (
	"subject" text NOT NULL,
	"window_seconds" integer NOT NULL,
	"window_start" bigint NOT NULL,
	"leased" bigint NOT NULL,
	"stocked" bigint NOT NULL,
	"wanted" boolean NOT NULL,
	CONSTRAINT "rate_windows_subject_window_seconds_pk" PRIMARY KEY("subject","window_seconds"),
	CONSTRAINT "rate_windows_form" CHECK ("rate_windows"."window_seconds" > 0 AND "rate_windows"."window_start" >= 0 AND "rate_windows"."leased" >= 0 AND "rate_windows"."stocked" >= 0)
);
--> statement-breakpoint
-- By hand. Updated all the time, and no index knows of what is updated: room for new versions beside the old ones.
ALTER TABLE "rate_windows" SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
