"""Talk that isn't meant for the model: people among themselves, the radio, sentences that only sound like commands.

A model that reacts to every voice is no use in a room with other people. Many of the frames share words with the
commands ("stopped at seven", "please tell her"), so that the words alone don't give it away; none begins with a
whole command. A frame belongs to one side of the held-out split: what the held-out voices say was never trained on.
"""

import random
import re
import zlib

from tml_jax.data.phrases import UNITS, USER_SPEEDS, Utterance
from tml_jax.data.speech_bank import Split

# The share of the frames that only the held-out voices say.
_HELD_OUT_ONE_IN = 5

_SLOTS = {
    "name": "Anna, Peter, Maria, Tom, Julia, David, Sarah, Paul, Emma, Robert, Laura, Simon, Grandma, Alice, Martin, "
    "Helen",
    "n": ", ".join(UNITS[2:21]),
    "m": ", ".join(UNITS[2:13]),
    "day": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "thing": "keys, umbrella, phone, coat, blue bag, tickets, glasses, new camera, lunch box, old map",
    "place": "the station, the market, the office, school, the library, the garden, the airport, the kitchen",
    "food": "soup, bread, apples, rice, cheese, pancakes, tomatoes, chocolate, potatoes, salad",
    "person": "my brother, her sister, our neighbor, the teacher, his mother, the driver, a friend of mine",
}

# Words of the commands, in sentences that ask the model for nothing.
_NEAR = """
I counted the cars and stopped at {n}.
What a nice time we had.
Please tell her to wait {m} minutes.
The clock said {m} past {m}.
Repeat after me.
She told me when the train leaves, but I forgot.
He said he would count the money on {day}.
They stopped playing at {m} o'clock.
The bus stops here every {m} minutes.
We had to stop {m} times on the way.
I can't count on {name}, you know that.
You can count on me, {name}.
Tell {name} that dinner is ready.
Tell me about your holiday, {name}.
Tell us when you get home.
He told us to repeat the whole year.
What {name} said was not very nice.
What I wanted to say is that I am tired.
What is the matter with {name}?
What time did {name} get home?
What time does the shop close on {day}?
Say hello to {name} from me.
They say it will rain every day.
Say what you want, I am not going.
The machine beeps every {m} seconds and nobody knows why.
I heard a beep in {place}.
Seconds later the door opened.
It only takes {n} seconds to boil.
{n} people were waiting in front of me.
{n} minutes passed and nothing happened.
There were {n} of us and only {m} chairs.
My number ends with {m} {m} {m}.
I live at number {n}, right behind {place}.
She is {n} years old today.
We bought {m} of them, plus one for {name}.
It was minus {m} degrees this morning.
He ran it {m} times in {n} minutes.
Two times he called, and two times I was out.
The children were quiet for once.
It was quiet in {place} last night.
You were very quiet on the phone, {name}.
I have had enough of this weather.
That was enough for {n} people.
He has enough money for {m} of those.
My sister says good morning to everyone she meets.
It was a good morning for a walk.
She asked how we are and I said fine.
I wonder how {name} is doing these days.
From {m} to {n}, the museum is free.
Count {name} in, she loves {food}.
He counts sheep when he can't sleep.
The count lived in a castle near the sea.
The down jacket is in the other room.
We went down from the hill at {m}.
Beep beep, said the little car.
I passed the exam, can you believe it?
Your time is up, thank you for your answer.
The second time was much better.
The seconds on this clock are wrong.
Could you repeat that, {name}?
The doctor repeated it {m} times.
Nobody told me that we start at {m}.
I said {n}, not {m}.
Number {n}, your order is ready.
Flight {m} {m} {n} is now boarding.
The answer on page {n} is wrong.
Every time I call, nobody answers.
Please be on time tomorrow, {name}.
It's time for us to leave.
This time we take the train.
There's a stop right behind {place}.
The music stopped when {name} came in.
I couldn't stop laughing.
She never stops talking about {place}.
He didn't stop at the red light.
Why did you stop learning the piano?
You can stop by on {day} if you like.
The last stop is near {place}.
Okay, then I will ask {person}.
Right, so we meet at {place}.
Yeah, he told me the same thing.
We say please and thank you in this house.
How many times did I tell you, {name}?
How long did the {food} take?
From now on {person} has the {thing}.
One of us should call {name}.
Two weeks ago I was still in Spain.
Three of them were broken.
Four more days until the holiday.
Five is my lucky number, what about yours?
Six months is a long time.
The count was {n} to {m} at half time.
The score is {m} to {m} with {n} minutes left.
Turn left after {n} hundred meters.
I need {n} eggs and {m} cups of flour.
Add {m} spoons of sugar and stir.
"""

# Chatter between people, questions to somebody else, everyday statements.
_CHATTER = """
Did you see {name} yesterday?
Are you coming to {place} with us?
Have you seen my {thing}?
Where did you put the {thing}?
Who left the {thing} in {place}?
Do you want some more {food}?
Can you pass me the {food}?
Shall we go to {place} on {day}?
Is {name} still at work?
Does {person} like {food}?
Would you like to come with us, {name}?
Why is {name} so late today?
When did you get back from {place}?
Which one do you like better, the red or the green?
Whose {thing} is this?
Didn't we meet at {place} last year?
Could you help {person} with the bags?
Will there be any {food} left?
How was your weekend, {name}?
How do you like the new flat?
How far is it to {place}?
Has anybody fed the cat?
Isn't that {person} over there?
May I borrow your {thing} until {day}?
Mum, where is my {thing}?
Dad, can we get some {food}?
{name}, come over here for a moment.
{name}, your phone is ringing.
{name}, look at this picture.
Come on, {name}, we are going to be late.
Don't forget your {thing}, {name}.
Put the {thing} on the table, please.
Leave the {thing} by the door.
Close the window, it's cold in here.
Turn the light off when you leave.
Give this to {person}, please.
Wait for {person} at {place}.
Ask {name} if she wants {food}.
Let's take a walk before it gets dark.
Let's have {food} tonight.
I think {name} is on the phone.
I think we should paint {place}.
I forgot to buy {food} again.
I lost my {thing} near {place}.
I found your {thing} under the sofa.
I'm going to {place}, do you need anything?
I'm so hungry, I could eat all the {food}.
I'll be back before {day}.
I've never been to {place} by bike.
I don't know where {name} went.
I don't think that {person} will come.
I told {person} about the party.
I saw {name} in {place} with {person}.
I didn't sleep well last night.
I would rather stay at home today.
I used to work in {place}.
I can hear the neighbors upstairs.
I really like your new shoes.
You should have seen her face.
You look tired, {name}.
You always lose your {thing}.
You won't believe what happened on {day}.
He bought a new bike last week.
He works with {person} now.
He is allergic to {food}.
He never answers his phone.
He wants to be a pilot one day.
She made {food} for everybody.
She is moving to Canada in the summer.
She works at {place} on {day}s.
She forgot her {thing} at {place}.
She plays the violin very well.
She laughed so hard that she cried.
We are out of {food}.
We had {food} at {place}.
We met {person} at the concert.
We should invite {name} and {person}.
We painted the fence green.
We missed the bus because of {name}.
We were looking for you everywhere.
They moved here from Italy.
They are building a new road behind {place}.
They gave the {thing} back to {person}.
They don't sell {food} any more.
My car is still at the garage.
My boss wants to talk to {name}.
My back hurts when I sit too long.
My favorite color is yellow.
My parents come to visit on {day}.
Our train leaves from the other platform.
Our dog hates the vacuum cleaner.
The dog ate all the {food}.
The cat is asleep on your {thing}.
The kids are in {place} with {person}.
The {food} smells wonderful.
The {food} needs more salt.
The washing machine is broken again.
The new teacher seems nice.
The door was open when we came.
The film was far too long for me.
The neighbors have a new baby.
The milk has gone bad.
The printer is out of paper again.
The meeting was moved to {day}.
The garden needs some water.
The shop around the corner is closed.
The plane was late because of the fog.
There is a letter for {person}.
There's no more {food} in the fridge.
There was a long line at {place}.
This {thing} is too heavy for me.
This is the best {food} I ever had.
That was the funniest thing I heard all week.
That reminds me of my grandfather.
It was so windy at {place}.
It's not my fault that {name} is angry.
It doesn't matter, we can buy a new one.
Nobody wanted to go to {place}.
Somebody took my {thing}.
Everybody liked the {food}.
Maybe {person} knows the way.
Maybe we can go there on {day}.
Well, I am not so sure about that.
Well, that depends on the weather.
Oh, I love this song.
Oh no, I left the {thing} at {place}.
No, it was {name} who called.
No, not that one, the other one.
Yes, he is my cousin.
Yes, but {person} doesn't like it.
Really? I thought they were friends.
Sorry, I was on the phone.
Sorry, I didn't hear the bell.
Thanks for the {food}, it was lovely.
Thanks, that's very kind of you.
Of course I remember {name}.
By the way, {name} got the job.
Honestly, I prefer {food}.
Anyway, let's talk about it on {day}.
Actually, I've changed my mind.
Guess who I met at {place}.
Remember the time when {name} fell into the lake?
Happy birthday, dear {name}.
Good luck with your exam, {name}.
Good night, sleep well.
See you on {day}, {name}.
See you later at {place}.
Take care of yourself.
Bless you, do you need a tissue?
Watch out, the plate is hot.
Hurry up, the others are waiting.
Sit down and have some {food}.
Just a moment, I'm on my way.
Not before {day}, I'm afraid.
Never mind, I'll do it myself.
If it rains, we stay in {place}.
If {name} calls, I'm not here.
When I was little, we lived by the sea.
Before you go, call {person}.
After lunch we went to {place}.
Because of {name} we had to walk.
Last {day} I was in bed with a cold.
Next {day} is my birthday.
Tomorrow {person} brings the {thing}.
Yesterday the whole street was dark.
Tonight we have guests, so please tidy up.
Once again {name} was right.
"""

# The radio, the television, announcements, a book read aloud.
_RADIO = """
And now the weather for {day}.
Tomorrow will be cloudy with some rain in the north.
The wind is coming from the west, with highs of {n} degrees.
You are listening to the evening show.
Stay with us, the news is coming up next.
Here is the latest from {place}.
Traffic is slow on the road to {place}.
There is an accident on the ring road, expect delays.
Our guest today is a writer from Ireland.
Welcome back to the program, I'm {name} Miller.
Let's take a short break and listen to some music.
That was a song from the new album.
The government has promised lower taxes.
Scientists have found a new kind of frog.
The president arrives in Paris on {day}.
The home team won the game with a late goal.
What a goal, what a match, the crowd goes wild!
Prices for {food} went up again this year.
Thousands of people were in the streets on {day}.
A fire broke out near {place} last night.
Police are looking for a man with a {thing}.
The strike at the airport is over.
Call us now and win a trip to Rome.
Only this week, {food} at half the price.
Buy one and get the other one for free.
Ladies and gentlemen, please fasten your seat belts.
The next train to London leaves from platform {m}.
Mind the gap between the train and the platform.
This call may be recorded.
Please hold the line, somebody will be with you shortly.
All our lines are busy at the moment.
Leave a message after the tone.
Passengers for Berlin, please go to gate {n}.
The library will close in {m} minutes.
The doors open on the left.
Once upon a time there was a little fox.
The old man looked at the sea and said nothing.
The king had {m} daughters, and each of them had a garden.
It was a dark and stormy night in {place}.
Chapter {n}, the house on the hill.
The knight rode for {m} days and {m} nights.
Deep in the forest lived a bear who loved {food}.
In the year of the great flood, the village was empty.
This recipe needs only flour, butter and {food}.
First wash the {food}, then cut it into small pieces.
Boil the {food} and put it aside.
Today we learn how birds find their way.
The river is more than {n} hundred miles long.
Whales can hold their breath for a very long time.
The moon was bright, and the snow lay deep.
The orchestra plays tonight under a new conductor.
The bank lowered its rates on {day}.
Doctors say that walking is good for the heart.
The museum shows paintings from {n} countries.
A storm warning is in force for the whole coast.
More on this story after the break.
Back to you in the studio, {name}.
"""

FRAMES: tuple[str, ...] = tuple(line for text in (_NEAR, _CHATTER, _RADIO) for line in text.strip().splitlines())


def split_of(frame: str) -> Split:
    """The side of the held-out split that a frame belongs to: by its checksum, so that new frames move no others."""
    return "train" if zlib.crc32(frame.encode()) % _HELD_OUT_ONE_IN else "heldout"


def _fill(frame: str, rng: random.Random) -> str:
    spoken = re.sub(r"\{(\w+)\}", lambda slot: rng.choice(_SLOTS[slot[1]].split(", ")), frame)
    return spoken[0].upper() + spoken[1:]


def talk_phrases(seed: int, num_clips: int, split: Split) -> list[Utterance]:
    """What one voice of the split talks about, a function of the seed; a longer plan starts with the shorter one.

    No frame comes again before all have been used. In the transcript "don't" keeps its apostrophe.
    """
    rng = random.Random(seed)
    frames = [frame for frame in FRAMES if split_of(frame) == split]
    plan: list[Utterance] = []
    while len(plan) < num_clips:
        for frame in rng.sample(frames, len(frames)):
            spoken = _fill(frame, rng)
            text = " ".join(re.sub(r"[^a-z' ]", " ", spoken.lower()).replace("o'clock", "o clock").split())
            plan.append(Utterance(text, spoken, "talk", rng.choice(USER_SPEEDS)))
    return plan[:num_clips]
